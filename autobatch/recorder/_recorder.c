/* The short ways to record a node, in C.

   A *way* is what a public function does for a kind of call seen before: it finds the node type in dicts, appends to the
   two lists of the graph, and returns a new expression. On anything else (a new type, a stale graph, an argument of the
   wrong kind) it has changed nothing, and the call goes to the function in Python that stands behind it, which knows all
   cases and says what is wrong. So nothing here decides anything: without this file every call is the one in Python, and the
   result is the same.

   Expressions and graphs are classes in Python with __slots__; `prepare` asks them where their slots lie. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

#define VERSION 1 /* of what `autobatch/recorder/__init__.py` expects */
#define MOST 8    /* arguments whose types are looked up one by one */
#define SLOTS 8   /* that a way knows of a class, at most */

static PyTypeObject *Expression, *Node, *Graph;
static PyObject *Graph_attribute, *Rates_attribute, *Enter_attribute, *Draw_attribute; /* names: "graph" and so on */

/* Where their slots lie: of an expression, and of a graph. */
static const char *const OF_EXPRESSION[] = {"graph", "index", "type", NULL};
static const char *const OF_GRAPH[] = {"types", "args", "numbers", "parameters", "tables", "kept", NULL};
static Py_ssize_t expression_slots[3], graph_slots[6];

#define GRAPH expression_slots[0]
#define INDEX expression_slots[1]
#define TYPE expression_slots[2]
#define TYPES graph_slots[0]
#define ARGS graph_slots[1]
#define NUMBERS graph_slots[2]
#define PARAMETERS graph_slots[3]
#define TABLES graph_slots[4]
#define KEPT graph_slots[5]

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

/* Where a slot of a class lies, which is a pointer to an object; -1 with an error if it has none of this name. */
static Py_ssize_t slot_of(PyTypeObject *type, const char *name)
{
    PyObject *member = PyObject_GetAttrString((PyObject *)type, name);
    if (member == NULL)
        return -1;
    Py_ssize_t offset = -1;
    if (Py_IS_TYPE(member, &PyMemberDescr_Type) && ((PyMemberDescrObject *)member)->d_member->type == T_OBJECT_EX)
        offset = ((PyMemberDescrObject *)member)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%s.%s is no slot", type->tp_name, name);
    Py_DECREF(member);
    return offset;
}

/* Where several slots lie, whose names end with a NULL; 0, or -1 with an error and `offsets` as it was. */
static int slots_of(PyTypeObject *type, const char *const *names, Py_ssize_t *offsets)
{
    Py_ssize_t found[SLOTS];
    int count = 0;
    for (; names[count] != NULL; count++)
        if ((found[count] = slot_of(type, names[count])) < 0)
            return -1;
    memcpy(offsets, found, count * sizeof(Py_ssize_t));
    return 0;
}

/* Graphs and expressions ---------------------------------------------------------------------------------------------- */

static inline int is_expression(PyObject *e)
{
    return PyObject_TypeCheck(e, Expression) && SLOT(e, GRAPH) != NULL && SLOT(e, INDEX) != NULL && SLOT(e, TYPE) != NULL;
}

/* Whether one can append to the lists of this graph: it was not dropped, and does not send all recording through `record`. */
static inline int is_open(PyObject *graph)
{
    if (graph == NULL || !PyObject_TypeCheck(graph, Graph))
        return 0;
    PyObject *types = SLOT(graph, TYPES), *args = SLOT(graph, ARGS);
    return types != NULL && args != NULL && PyList_CheckExact(types) && PyList_CheckExact(args);
}

/* What a dict holds under a key, borrowed; NULL without an error if it is no dict, or holds nothing. */
static inline PyObject *found(PyObject *dict, PyObject *key)
{
    if (dict == NULL || !PyDict_Check(dict))
        return NULL;
    PyObject *value = PyDict_GetItemWithError(dict, key);
    if (value == NULL && PyErr_Occurred())
        PyErr_Clear();
    return value;
}

static inline PyObject *number_found(PyObject *dict, PyObject *key)
{
    PyObject *value = found(dict, key);
    return value != NULL && PyLong_CheckExact(value) ? value : NULL;
}

static inline int is_in(PyObject *set, PyObject *thing)
{
    if (set == NULL || !PyAnySet_Check(set))
        return 0;
    int is = PySet_Contains(set, thing);
    if (is < 0)
        PyErr_Clear();
    return is == 1;
}

static int again; /* whether a graph has taken note of something meanwhile, so that the way may be open now */

/* Call who.enter(what), or who.enter(what, more): code in Python, which may do anything, so that the way begins anew. */
static void enter(PyObject *who, PyObject *what, PyObject *more)
{
    Py_INCREF(who);
    Py_INCREF(what);
    PyObject *done = PyObject_CallMethodObjArgs(who, Enter_attribute, what, more, NULL);
    Py_DECREF(who);
    Py_DECREF(what);
    if (done != NULL)
        again = 1;
    else if (PyErr_ExceptionMatches(PyExc_Exception))
        PyErr_Clear(); /* the function in Python says the same */
    Py_XDECREF(done);
}

/* The open graph of expressions of which some may be parameters, known to it; NULL if there is none. */
static PyObject *graph_of(PyObject *const *es, Py_ssize_t n)
{
    PyObject *graph = NULL;
    int parameters = 0;
    for (Py_ssize_t k = 0; k < n; k++) {
        if (!is_expression(es[k]))
            return NULL;
        PyObject *own = SLOT(es[k], GRAPH);
        if (own == Py_None)
            parameters = 1;
        else if (graph == NULL)
            graph = own;
        else if (graph != own)
            return NULL;
    }
    if (!is_open(graph))
        return NULL;
    for (Py_ssize_t k = 0; parameters && k < n; k++)
        if (SLOT(es[k], GRAPH) == Py_None && !is_in(SLOT(graph, PARAMETERS), es[k])) {
            enter(graph, es[k], NULL);
            return NULL;
        }
    return graph;
}

/* A new expression of a node. No garbage is collected meanwhile: finalizers could drop the graph. */
static PyObject *made(PyTypeObject *kind, PyObject *graph, PyObject *index, PyObject *number)
{
    int enabled = PyGC_Disable();
    PyObject *e = kind->tp_alloc(kind, 0);
    if (enabled)
        PyGC_Enable();
    if (e != NULL) {
        SLOT(e, GRAPH) = Py_NewRef(graph);
        SLOT(e, INDEX) = Py_NewRef(index);
        SLOT(e, TYPE) = Py_NewRef(number);
    }
    return e;
}

static PyObject *made_at(PyTypeObject *kind, PyObject *graph, Py_ssize_t at, PyObject *number)
{
    PyObject *index = PyLong_FromSsize_t(at);
    if (index == NULL)
        return NULL;
    PyObject *e = made(kind, graph, index, number);
    Py_DECREF(index);
    return e;
}

/* Cut both lists of a graph to what they were. */
static void cut(PyObject *graph, Py_ssize_t types, Py_ssize_t args)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyList_SetSlice(SLOT(graph, TYPES), types, PY_SSIZE_T_MAX, NULL);
    PyList_SetSlice(SLOT(graph, ARGS), args, PY_SSIZE_T_MAX, NULL);
    PyErr_Restore(type, value, trace);
}

/* Append a node and its entries to the lists of an open graph, all or nothing. */
static int append(PyObject *graph, PyObject *number, PyObject *const *entries, Py_ssize_t n)
{
    PyObject *types = SLOT(graph, TYPES), *args = SLOT(graph, ARGS);
    Py_ssize_t nodes = PyList_GET_SIZE(types), before = PyList_GET_SIZE(args);
    int failed = PyList_Append(types, number);
    for (Py_ssize_t k = 0; k < n && !failed; k++)
        failed = PyList_Append(args, entries[k]);
    if (failed)
        cut(graph, nodes, before);
    return failed;
}

/* Record a node; return its expression. */
static PyObject *recorded(PyTypeObject *kind, PyObject *graph, PyObject *number, PyObject *const *entries, Py_ssize_t n)
{
    PyObject *e = made_at(kind, graph, PyList_GET_SIZE(SLOT(graph, TYPES)), number);
    if (e != NULL && append(graph, number, entries, n))
        Py_CLEAR(e);
    return e;
}

/* Ways --------------------------------------------------------------------------------------------------------------- */

typedef struct Short {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *(*way)(struct Short *, PyObject *const *, Py_ssize_t);
    PyObject *table, *more; /* what the way looks up */
    PyObject *function;     /* the one in Python */
    PyTypeObject *kind;     /* of the expressions it returns */
    PyObject *dict, *weakrefs;
    Py_ssize_t slots[SLOTS], count; /* of the class `table`; how many arguments a cell has */
} Short;

/* f(x): table[type of x] */
static PyObject *unary(Short *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 1 || !is_expression(args[0]) || !is_open(SLOT(args[0], GRAPH)))
        return NULL;
    PyObject *number = number_found(self->table, SLOT(args[0], TYPE));
    return number == NULL ? NULL : recorded(Node, SLOT(args[0], GRAPH), number, &SLOT(args[0], INDEX), 1);
}

/* f(x, y): table[type of x][type of y] */
static PyObject *binary(Short *self, PyObject *const *args, Py_ssize_t n)
{
    PyObject *graph = n == 2 ? graph_of(args, 2) : NULL;
    if (graph == NULL)
        return NULL;
    PyObject *number = number_found(found(self->table, SLOT(args[0], TYPE)), SLOT(args[1], TYPE));
    if (number == NULL)
        return NULL;
    PyObject *entries[2] = {SLOT(args[0], INDEX), SLOT(args[1], INDEX)};
    return recorded(Node, graph, number, entries, 2);
}

/* f(x, number): table[type of x]; the number is an input that nodes share. `left`: it comes first. */
static PyObject *numbered(PyObject *table, PyObject *x, PyObject *value, int left)
{
    if (!is_expression(x) || !(PyFloat_CheckExact(value) || PyLong_CheckExact(value)) || !is_open(SLOT(x, GRAPH)))
        return NULL;
    PyObject *graph = SLOT(x, GRAPH), *number = number_found(table, SLOT(x, TYPE));
    PyObject *place = number == NULL ? NULL : number_found(SLOT(graph, NUMBERS), value);
    if (place == NULL)
        return NULL;
    PyObject *entries[2] = {left ? place : SLOT(x, INDEX), left ? SLOT(x, INDEX) : place};
    return recorded(Node, graph, number, entries, 2);
}

static PyObject *with_number(Short *self, PyObject *const *args, Py_ssize_t n)
{
    return n == 2 ? numbered(self->table, args[0], args[1], 0) : NULL;
}

/* number * x, where Python has turned the arguments round */
static PyObject *reflected(Short *self, PyObject *const *args, Py_ssize_t n)
{
    return n == 2 ? numbered(self->table, args[0], args[1], 1) : NULL;
}

/* x * y, or x * number by the types in `more` */
static PyObject *operated(Short *self, PyObject *const *args, Py_ssize_t n)
{
    if (n == 2 && !PyFloat_CheckExact(args[1]) && !PyLong_CheckExact(args[1]))
        return binary(self, args, 2);
    return n == 2 ? numbered(self->more, args[0], args[1], 0) : NULL;
}

/* f(x, d): table[d][type of x]; `more` is what d is if it is not given */
static PyObject *of_dim(Short *self, PyObject *const *args, Py_ssize_t n)
{
    PyObject *d = n == 2 ? args[1] : self->more;
    if (n < 1 || n > 2 || !PyLong_CheckExact(d) || !is_expression(args[0]) || !is_open(SLOT(args[0], GRAPH)))
        return NULL;
    PyObject *number = number_found(found(self->table, d), SLOT(args[0], TYPE));
    return number == NULL ? NULL : recorded(Node, SLOT(args[0], GRAPH), number, &SLOT(args[0], INDEX), 1);
}

/* f([x, y, ...]): table[n][type of x][type of y]...; or more[type][n] of a list whose types are all the same, no parameters. */
static PyObject *of_list(Short *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 1 || !PyList_CheckExact(args[0]) || PyList_GET_SIZE(args[0]) == 0)
        return NULL;
    PyObject *const *es = ((PyListObject *)args[0])->ob_item, *graph, *length, *number = NULL;
    n = PyList_GET_SIZE(args[0]);
    graph = graph_of(es, n);
    if (graph == NULL)
        return NULL;
    length = PyLong_FromSsize_t(n);
    if (length == NULL)
        return NULL;
    if (n <= MOST) {
        number = found(self->table, length);
        for (Py_ssize_t k = 0; k < n && number != NULL; k++)
            number = found(number, SLOT(es[k], TYPE));
    }
    if (number == NULL) {
        for (Py_ssize_t k = 0; k < n; k++)
            if (SLOT(es[k], GRAPH) == Py_None || SLOT(es[k], TYPE) != SLOT(es[0], TYPE)) {
                Py_DECREF(length);
                return NULL;
            }
        number = found(found(self->more, SLOT(es[0], TYPE)), length);
    }
    Py_DECREF(length);
    if (number == NULL || !PyLong_CheckExact(number))
        return NULL;
    if (n <= MOST) {
        PyObject *entries[MOST];
        for (Py_ssize_t k = 0; k < n; k++)
            entries[k] = SLOT(es[k], INDEX);
        return recorded(Node, graph, number, entries, n);
    }
    Py_ssize_t nodes = PyList_GET_SIZE(SLOT(graph, TYPES)), before = PyList_GET_SIZE(SLOT(graph, ARGS));
    PyObject *e = recorded(Node, graph, number, NULL, 0);
    for (Py_ssize_t k = 0; k < n && e != NULL; k++)
        if (PyList_Append(SLOT(graph, ARGS), SLOT(es[k], INDEX))) {
            cut(graph, nodes, before);
            Py_CLEAR(e);
        }
    return e;
}

/* x[a:b:c]: (number, start) = table[type of x, a, b, c] */
static PyObject *sliced(PyObject *table, PyObject *x, PySliceObject *at)
{
    if (!is_expression(x))
        return NULL;
    int enabled = PyGC_Disable();
    PyObject *key = PyTuple_Pack(4, SLOT(x, TYPE), at->start, at->stop, at->step);
    if (enabled)
        PyGC_Enable();
    if (key == NULL)
        return NULL;
    int plain = 1; /* nothing whose hash is code in Python */
    for (Py_ssize_t k = 1; k < 4; k++)
        plain &= PyTuple_GET_ITEM(key, k) == Py_None || PyLong_CheckExact(PyTuple_GET_ITEM(key, k));
    PyObject *known = plain ? found(table, key) : NULL, *graph = SLOT(x, GRAPH);
    Py_DECREF(key);
    if (known == NULL || !is_open(graph) || !PyTuple_CheckExact(known) || PyTuple_GET_SIZE(known) != 2 ||
        !PyLong_CheckExact(PyTuple_GET_ITEM(known, 0)))
        return NULL;
    PyObject *entries[2] = {SLOT(x, INDEX), PyTuple_GET_ITEM(known, 1)};
    return recorded(Node, graph, PyTuple_GET_ITEM(known, 0), entries, 2);
}

/* f(x, i): (number, size) = table[type of x], or (number, size, stride); with `more`, a dict of slices, i may be one of
   these, or count from the end. */
static PyObject *picked(Short *self, PyObject *const *args, Py_ssize_t n)
{
    if (n == 2 && PySlice_Check(args[1]))
        return sliced(self->more, args[0], (PySliceObject *)args[1]);
    if (n != 2 || !PyLong_CheckExact(args[1]) || !is_expression(args[0]) || !is_open(SLOT(args[0], GRAPH)))
        return NULL;
    PyObject *known = found(self->table, SLOT(args[0], TYPE));
    if (known == NULL || !PyTuple_CheckExact(known) || PyTuple_GET_SIZE(known) < 2 || PyTuple_GET_SIZE(known) > 3)
        return NULL;
    int overflow, strided = PyTuple_GET_SIZE(known) == 3;
    if (!PyLong_CheckExact(PyTuple_GET_ITEM(known, 0)))
        return NULL;
    long long at = PyLong_AsLongLongAndOverflow(args[1], &overflow), stride = 1;
    long long size = PyLong_AsLongLong(PyTuple_GET_ITEM(known, 1));
    if (strided)
        stride = PyLong_AsLongLong(PyTuple_GET_ITEM(known, 2));
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return NULL;
    }
    if (at < 0 && self->more != Py_None)
        at += size;
    if (overflow || at < 0 || at >= size)
        return NULL;
    PyObject *place = strided ? PyLong_FromLongLong(at * stride) : Py_NewRef(args[1]);
    if (place == NULL)
        return NULL;
    PyObject *entries[2] = {SLOT(args[0], INDEX), place};
    PyObject *e = recorded(self->kind, SLOT(args[0], GRAPH), PyTuple_GET_ITEM(known, 0), entries, 2);
    Py_DECREF(place);
    return e;
}

/* f(x, i, number): (number of a type, size) = table[type of x]; `more` is the number if it is not given */
static PyObject *hinged(Short *self, PyObject *const *args, Py_ssize_t n)
{
    PyObject *value = n == 3 ? args[2] : self->more;
    if (n < 2 || n > 3 || !PyLong_CheckExact(args[1]) || !(PyFloat_CheckExact(value) || PyLong_CheckExact(value)) ||
        !is_expression(args[0]) || !is_open(SLOT(args[0], GRAPH)))
        return NULL;
    PyObject *known = found(self->table, SLOT(args[0], TYPE));
    PyObject *place = number_found(SLOT(SLOT(args[0], GRAPH), NUMBERS), value);
    if (place == NULL || known == NULL || !PyTuple_CheckExact(known) || PyTuple_GET_SIZE(known) != 2 ||
        !PyLong_CheckExact(PyTuple_GET_ITEM(known, 0)) || !PyLong_CheckExact(PyTuple_GET_ITEM(known, 1)))
        return NULL;
    int overflow, too_large;
    long long at = PyLong_AsLongLongAndOverflow(args[1], &overflow);
    if (overflow || at < 0 || at >= PyLong_AsLongLongAndOverflow(PyTuple_GET_ITEM(known, 1), &too_large))
        return NULL;
    PyObject *entries[3] = {SLOT(args[0], INDEX), place, args[1]};
    return recorded(Node, SLOT(args[0], GRAPH), PyTuple_GET_ITEM(known, 0), entries, 3);
}

/* f(x, p): table[type of x]; p from 0 to 1 is an input that nodes share, and more.draw() gives the key of the random numbers */
static PyObject *drawn(Short *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2 || !PyFloat_CheckExact(args[1]) || !is_expression(args[0]) || !is_open(SLOT(args[0], GRAPH)))
        return NULL;
    double p = PyFloat_AS_DOUBLE(args[1]);
    PyObject *graph = SLOT(args[0], GRAPH), *number = number_found(self->table, SLOT(args[0], TYPE));
    PyObject *place = number == NULL ? NULL : number_found(SLOT(graph, NUMBERS), args[1]);
    if (place == NULL || !(p >= 0 && p <= 1))
        return NULL;
    Py_INCREF(number); /* to draw is code in Python, which may do anything */
    Py_INCREF(place);
    PyObject *key = PyObject_CallMethodNoArgs(self->more, Draw_attribute), *e = NULL;
    if (key != NULL && PyLong_CheckExact(key) && SLOT(args[0], GRAPH) == graph && is_open(graph)) {
        PyObject *entries[3] = {SLOT(args[0], INDEX), place, key};
        e = recorded(Node, graph, number, entries, 3);
    }
    Py_DECREF(number);
    Py_DECREF(place);
    Py_XDECREF(key);
    return e;
}

/* f(x, dims, batch): table[dims, batch, more][False][type of x]; `batch` may be left out */
static PyObject *reduced(Short *self, PyObject *const *args, Py_ssize_t n)
{
    PyObject *batch = n == 3 ? args[2] : Py_False;
    if (n < 2 || n > 3 || !PyBool_Check(batch) || !PyList_CheckExact(args[1]) || !is_expression(args[0]))
        return NULL;
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(args[1]); k++)
        if (!PyLong_CheckExact(PyList_GET_ITEM(args[1], k)))
            return NULL;
    int enabled = PyGC_Disable();
    PyObject *dims = PyList_AsTuple(args[1]), *key = dims == NULL ? NULL : PyTuple_Pack(3, dims, batch, self->more);
    if (enabled)
        PyGC_Enable();
    Py_XDECREF(dims);
    if (key == NULL)
        return NULL;
    PyObject *number = number_found(found(found(self->table, key), Py_False), SLOT(args[0], TYPE));
    Py_DECREF(key);
    if (number == NULL || !is_open(SLOT(args[0], GRAPH)))
        return NULL;
    return recorded(Node, SLOT(args[0], GRAPH), number, &SLOT(args[0], INDEX), 1);
}

static const char *const OF_TABLE[] = {"_row_type", "_size", NULL};

/* table[i]: a row in the current graph. `table` is the class of tables, `more` what has the graph as its attribute `graph`. */
static PyObject *row(Short *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2 || !PyLong_CheckExact(args[1]) || !PyObject_TypeCheck(args[0], (PyTypeObject *)self->table))
        return NULL;
    PyObject *number = SLOT(args[0], self->slots[0]), *size = SLOT(args[0], self->slots[1]);
    if (number == NULL || size == NULL || !PyLong_CheckExact(number) || !PyLong_CheckExact(size))
        return NULL;
    int overflow;
    long long at = PyLong_AsLongLongAndOverflow(args[1], &overflow);
    if (overflow || at < 0 || at >= PyLong_AsLongLong(size))
        return NULL;
    PyObject *graph = PyObject_GetAttr(self->more, Graph_attribute), *e = NULL;
    if (graph == NULL) {
        PyErr_Clear();
        return NULL;
    }
    if (is_open(graph)) {
        if (is_in(SLOT(graph, TABLES), args[0]))
            e = recorded(self->kind, graph, number, args + 1, 1);
        else
            enter(graph, args[0], Py_True);
    }
    Py_DECREF(graph);
    return e;
}

/* A call of a cell: table[type of x][type of y]... = (what is in `kept` of a graph that knows the parameters, whether it
   returns a pair, types of the node and of its outputs, type of the first output, and of the second). */
static PyObject *cell(Short *self, PyObject *const *args, Py_ssize_t n)
{
    PyObject *graph = n == self->count && n > 0 ? graph_of(args, n) : NULL, *known = self->table;
    if (graph == NULL)
        return NULL;
    for (Py_ssize_t k = 0; k < n && known != NULL; k++)
        known = SLOT(args[k], GRAPH) == Py_None ? NULL : found(known, SLOT(args[k], TYPE));
    if (known == NULL || !PyTuple_CheckExact(known) || PyTuple_GET_SIZE(known) != 5)
        return NULL;
    PyObject *numbers = PyTuple_GET_ITEM(known, 2);
    int pair = PyTuple_GET_ITEM(known, 1) == Py_True;
    if (!PyTuple_CheckExact(numbers))
        return NULL;
    if (found(SLOT(graph, KEPT), PyTuple_GET_ITEM(known, 0)) == NULL) {
        enter(PyTuple_GET_ITEM(known, 0), graph, NULL);
        return NULL;
    }
    PyObject *types = SLOT(graph, TYPES), *entries = SLOT(graph, ARGS);
    Py_ssize_t nodes = PyList_GET_SIZE(types), before = PyList_GET_SIZE(entries);
    PyObject *result = made_at(Node, graph, nodes + 1, PyTuple_GET_ITEM(known, 3));
    if (pair && result != NULL) {
        PyObject *second = made_at(Node, graph, nodes + 2, PyTuple_GET_ITEM(known, 4)), *both = NULL;
        int enabled = PyGC_Disable();
        if (second != NULL)
            both = PyTuple_Pack(2, result, second);
        if (enabled)
            PyGC_Enable();
        Py_DECREF(result);
        Py_XDECREF(second);
        result = both;
    }
    int failed = result == NULL;
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(numbers) && !failed; k++)
        failed = PyList_Append(types, PyTuple_GET_ITEM(numbers, k));
    for (Py_ssize_t k = 0; k < n && !failed; k++)
        failed = PyList_Append(entries, SLOT(args[k], INDEX));
    if (failed) {
        cut(graph, nodes, before);
        Py_CLEAR(result);
    }
    return result;
}

static const char *const OF_STATE[] = {"_builder", "_prev", "_use", "_h", "_c", "_output", "_steps", NULL};
enum { S_BUILDER, S_PREV, S_USE, S_H, S_C, S_OUTPUT, S_STEPS };
#define OF(state, slot) SLOT(state, self->slots[slot])

/* What a step of an LSTM needs for an input of the type of x, borrowed: (for each layer: the type of a step, and the indices
   of Wx, Wh, b), the types of h and c, the index of the forget bias, the rates of dropout. NULL if x or the state is of
   another kind. */
static PyObject *known_step(Short *self, PyObject *state, PyObject *x)
{
    PyObject *hs = OF(state, S_H), *cs = OF(state, S_C), *use = OF(state, S_USE), *graph = SLOT(x, GRAPH);
    PyObject *known = found(OF(state, S_STEPS), SLOT(x, TYPE));
    if (!is_open(graph) || known == NULL || !PyTuple_CheckExact(known) || PyTuple_GET_SIZE(known) != 5 ||
        !PyTuple_CheckExact(PyTuple_GET_ITEM(known, 0)) || hs == NULL || cs == NULL || use == NULL || !PyTuple_CheckExact(hs) ||
        !PyTuple_CheckExact(cs) || !PyTuple_CheckExact(use) || PyTuple_GET_SIZE(use) < 1 || PyTuple_GET_ITEM(use, 0) != graph)
        return NULL;
    PyObject *layers = PyTuple_GET_ITEM(known, 0), *h_type = PyTuple_GET_ITEM(known, 1), *c_type = PyTuple_GET_ITEM(known, 2);
    Py_ssize_t count = PyTuple_GET_SIZE(layers);
    if (count < 1 || count > MOST || PyTuple_GET_SIZE(hs) != count || PyTuple_GET_SIZE(cs) != count)
        return NULL;
    for (Py_ssize_t k = 0; k < count; k++) {
        PyObject *h = PyTuple_GET_ITEM(hs, k), *c = PyTuple_GET_ITEM(cs, k), *layer = PyTuple_GET_ITEM(layers, k);
        if (!is_expression(h) || !is_expression(c) || SLOT(h, GRAPH) != graph || SLOT(c, GRAPH) != graph ||
            SLOT(h, TYPE) != h_type || SLOT(c, TYPE) != c_type || !PyTuple_CheckExact(layer) || PyTuple_GET_SIZE(layer) != 4)
            return NULL;
    }
    return known;
}

/* state.add_input(x) of an LSTM whose step was recorded before, for an input of this type: `table` is the class of the state,
   `more` what has the current graph as its attribute `graph`. */
static PyObject *step(Short *self, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2 || !Py_IS_TYPE(args[0], (PyTypeObject *)self->table) || !is_expression(args[1]) ||
        OF(args[0], S_BUILDER) == NULL)
        return NULL;
    PyObject *state = args[0], *x = args[1], *builder = OF(state, S_BUILDER), *graph = SLOT(x, GRAPH);
    /* To ask for attributes may run code in Python, so it comes before all that is borrowed. */
    PyObject *rates = PyObject_GetAttr(builder, Rates_attribute), *current = PyObject_GetAttr(self->more, Graph_attribute);
    PyErr_Clear();
    PyObject *known = rates != NULL && current == graph ? known_step(self, state, x) : NULL;
    if (known != NULL && PyTuple_GET_ITEM(known, 4) != rates)
        known = NULL;
    Py_XDECREF(rates);
    Py_XDECREF(current);
    if (known == NULL)
        return NULL;

    PyObject *layers = PyTuple_GET_ITEM(known, 0), *h_type = PyTuple_GET_ITEM(known, 1), *c_type = PyTuple_GET_ITEM(known, 2);
    PyObject *hs = OF(state, S_H), *cs = OF(state, S_C);
    Py_ssize_t count = PyTuple_GET_SIZE(layers);
    PyObject *types = SLOT(graph, TYPES), *entries = SLOT(graph, ARGS);
    Py_ssize_t nodes = PyList_GET_SIZE(types), before = PyList_GET_SIZE(entries);
    int enabled = PyGC_Disable(), failed = 0;
    PyObject *after = Py_TYPE(state)->tp_alloc(Py_TYPE(state), 0), *new_h = PyTuple_New(count), *new_c = PyTuple_New(count);
    failed = after == NULL || new_h == NULL || new_c == NULL;
    PyObject *below = SLOT(x, INDEX);
    for (Py_ssize_t k = 0; k < count && !failed; k++) {
        PyObject *h = made_at(Node, graph, nodes + 3 * k + 1, h_type), *c = made_at(Node, graph, nodes + 3 * k + 2, c_type);
        if (h != NULL)
            PyTuple_SET_ITEM(new_h, k, h);
        if (c != NULL)
            PyTuple_SET_ITEM(new_c, k, c);
        if ((failed = h == NULL || c == NULL))
            break;
        PyObject *layer = PyTuple_GET_ITEM(layers, k);
        PyObject *of_node[3] = {PyTuple_GET_ITEM(layer, 0), h_type, c_type};
        PyObject *of_step[7] = {
            below,
            SLOT(PyTuple_GET_ITEM(hs, k), INDEX),
            SLOT(PyTuple_GET_ITEM(cs, k), INDEX),
            PyTuple_GET_ITEM(layer, 1),
            PyTuple_GET_ITEM(layer, 2),
            PyTuple_GET_ITEM(layer, 3),
            PyTuple_GET_ITEM(known, 3),
        };
        for (int i = 0; i < 3 && !failed; i++)
            failed = PyList_Append(types, of_node[i]);
        for (int i = 0; i < 7 && !failed; i++)
            failed = PyList_Append(entries, of_step[i]);
        below = SLOT(h, INDEX);
    }
    if (enabled)
        PyGC_Enable();
    if (failed) {
        cut(graph, nodes, before);
        Py_XDECREF(after);
        Py_XDECREF(new_h);
        Py_XDECREF(new_c);
        return NULL;
    }
    OF(after, S_BUILDER) = Py_NewRef(builder);
    OF(after, S_PREV) = Py_NewRef(state);
    OF(after, S_USE) = Py_NewRef(OF(state, S_USE));
    OF(after, S_H) = new_h;
    OF(after, S_C) = new_c;
    OF(after, S_OUTPUT) = Py_NewRef(Py_None);
    OF(after, S_STEPS) = Py_NewRef(OF(state, S_STEPS));
    return after;
}

/* The object that takes a way ----------------------------------------------------------------------------------------- */

static PyObject *short_call(PyObject *self, PyObject *const *args, size_t count, PyObject *names)
{
    if (names == NULL || PyTuple_GET_SIZE(names) == 0) {
        for (int left = MOST; left >= 0; left--) { /* each time the graph may take note of one thing more */
            again = 0;
            PyObject *result = ((Short *)self)->way((Short *)self, args, PyVectorcall_NARGS(count));
            if (result != NULL || PyErr_Occurred())
                return result;
            if (!again)
                break;
        }
    }
    return PyObject_Vectorcall(((Short *)self)->function, args, count, names);
}

static PyObject *short_get(PyObject *self, PyObject *owner, PyObject *type)
{
    return owner == NULL || owner == Py_None ? Py_NewRef(self) : PyMethod_New(self, owner);
}

static PyObject *short_repr(PyObject *self)
{
    return PyObject_Repr(((Short *)self)->function);
}

static PyObject *short_reduce(PyObject *self, PyObject *ignored)
{
    return PyObject_GetAttrString(self, "__qualname__");
}

static int short_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((Short *)self)->table);
    Py_VISIT(((Short *)self)->more);
    Py_VISIT(((Short *)self)->function);
    Py_VISIT(((Short *)self)->kind);
    Py_VISIT(((Short *)self)->dict);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int short_clear(PyObject *self)
{
    Py_CLEAR(((Short *)self)->dict); /* the others stay as long as it can be called */
    return 0;
}

static void short_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((Short *)self)->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
    Py_XDECREF(((Short *)self)->table);
    Py_XDECREF(((Short *)self)->more);
    Py_XDECREF(((Short *)self)->function);
    Py_XDECREF(((Short *)self)->kind);
    Py_XDECREF(((Short *)self)->dict);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef short_methods[] = {{"__reduce__", short_reduce, METH_NOARGS, NULL}, {NULL}};

static PyMemberDef short_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Short, call), READONLY},
    {"__dictoffset__", T_PYSSIZET, offsetof(Short, dict), READONLY},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Short, weakrefs), READONLY},
    {NULL},
};

static PyGetSetDef short_getset[] = {{"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict}, {NULL}};

static PyType_Slot short_slots[] = {
    {Py_tp_doc, "A function whose commonest calls are recorded in C; `__wrapped__` is the one in Python."},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, short_get},
    {Py_tp_repr, short_repr},
    {Py_tp_traverse, short_traverse},
    {Py_tp_clear, short_clear},
    {Py_tp_dealloc, short_dealloc},
    {Py_tp_methods, short_methods},
    {Py_tp_members, short_members},
    {Py_tp_getset, short_getset},
    {0},
};

static PyType_Spec short_spec = {
    "autobatch.recorder._recorder.function",
    sizeof(Short),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR |
        Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    short_slots,
};

static PyTypeObject *ShortType;

static const struct {
    const char *name;
    PyObject *(*way)(Short *, PyObject *const *, Py_ssize_t);
    const char *const *slots; /* of the class that the table of this way is; else it is a dict */
} WAYS[] = {
    {"unary", unary, NULL},
    {"binary", binary, NULL},
    {"with_number", with_number, NULL},
    {"operated", operated, NULL},
    {"reflected", reflected, NULL},
    {"of_dim", of_dim, NULL},
    {"of_list", of_list, NULL},
    {"picked", picked, NULL},
    {"hinged", hinged, NULL},
    {"drawn", drawn, NULL},
    {"reduced", reduced, NULL},
    {"cell", cell, NULL},
    {"row", row, OF_TABLE},
    {"step", step, OF_STATE},
};

/* Module -------------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(prepare_doc, "prepare(expression, node, graph)\n--\n\nTell the classes, with their slots.");

static PyObject *prepare(PyObject *module, PyObject *args)
{
    PyTypeObject *expression, *node, *graph;
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyType_Type, &expression, &PyType_Type, &node, &PyType_Type, &graph))
        return NULL;
    if (!PyType_IsSubtype(node, expression))
        return PyErr_Format(PyExc_TypeError, "a node is an expression");
    if (slots_of(expression, OF_EXPRESSION, expression_slots) || slots_of(graph, OF_GRAPH, graph_slots))
        return NULL;
    if (Graph_attribute == NULL && (Graph_attribute = PyUnicode_InternFromString("graph")) == NULL)
        return NULL;
    if (Rates_attribute == NULL && (Rates_attribute = PyUnicode_InternFromString("_rates")) == NULL)
        return NULL;
    if (Enter_attribute == NULL && (Enter_attribute = PyUnicode_InternFromString("enter")) == NULL)
        return NULL;
    if (Draw_attribute == NULL && (Draw_attribute = PyUnicode_InternFromString("draw")) == NULL)
        return NULL;
    Py_XSETREF(Expression, (PyTypeObject *)Py_NewRef(expression));
    Py_XSETREF(Node, (PyTypeObject *)Py_NewRef(node));
    Py_XSETREF(Graph, (PyTypeObject *)Py_NewRef(graph));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(short_doc, "short(way, function, table, more=None, kind=None)\n--\n\nPut a way before a function in Python.");

static PyObject *new_short(PyObject *module, PyObject *args)
{
    const char *name;
    PyObject *function, *table, *more = Py_None, *kind = Py_None;
    if (!PyArg_ParseTuple(args, "sOO|OO", &name, &function, &table, &more, &kind))
        return NULL;
    size_t k = 0;
    while (k < Py_ARRAY_LENGTH(WAYS) && strcmp(WAYS[k].name, name) != 0)
        k++;
    if (Expression == NULL || k == Py_ARRAY_LENGTH(WAYS))
        return PyErr_Format(PyExc_ValueError, Expression == NULL ? "prepare() comes first" : "there is no way %s", name);
    if (kind == Py_None)
        kind = (PyObject *)Node;
    if (!PyType_Check(kind) || !PyType_IsSubtype((PyTypeObject *)kind, Expression))
        return PyErr_Format(PyExc_TypeError, "%s: the kind is no class of expressions", name);
    if (WAYS[k].slots == NULL ? !PyDict_CheckExact(table) : !PyType_Check(table))
        return PyErr_Format(PyExc_TypeError, "%s: the table is no %s", name, WAYS[k].slots == NULL ? "dict" : "class");
    Py_ssize_t slots[SLOTS] = {0}, count = 0;
    if (WAYS[k].slots != NULL && slots_of((PyTypeObject *)table, WAYS[k].slots, slots))
        return NULL;
    if (WAYS[k].way == cell && (count = PyLong_AsSsize_t(more)) == -1 && PyErr_Occurred())
        return NULL;
    Short *self = PyObject_GC_New(Short, ShortType);
    if (self == NULL)
        return NULL;
    self->call = short_call;
    self->way = WAYS[k].way;
    self->table = Py_NewRef(table);
    self->more = Py_NewRef(more);
    self->function = Py_NewRef(function);
    self->kind = (PyTypeObject *)Py_NewRef(kind);
    self->dict = self->weakrefs = NULL;
    memcpy(self->slots, slots, sizeof(slots));
    self->count = count;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

PyDoc_STRVAR(nodes_doc, "nodes(kind, graph, indices, number)\n--\n\nReturn expressions of nodes of one type.");

static PyObject *nodes(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    if (n != 4 || Expression == NULL || !PyType_Check(args[0]) || !PyType_IsSubtype((PyTypeObject *)args[0], Expression) ||
        !PyLong_CheckExact(args[3]))
        return PyErr_Format(PyExc_TypeError, "nodes: a class, a graph, integers, and the number of a type");
    PyObject *list = PySequence_List(args[2]); /* of indices, each of which its expression replaces */
    for (Py_ssize_t k = 0; list != NULL && k < PyList_GET_SIZE(list); k++) {
        PyObject *index = PyList_GET_ITEM(list, k), *e = NULL;
        if (PyLong_CheckExact(index))
            e = made((PyTypeObject *)args[0], args[1], index, args[3]);
        else
            PyErr_Format(PyExc_TypeError, "nodes: an index is no integer");
        if (e == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, k, e);
        Py_DECREF(index);
    }
    return list;
}

PyDoc_STRVAR(indices_doc, "indices(es, graph, types)\n--\n\n"
                          "Return the indices of a list of expressions; None unless all are of this graph and these types.");

static PyObject *indices(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    if (n != 3 || Expression == NULL || !PyList_CheckExact(args[0]) || !PyAnySet_Check(args[2]))
        return PyErr_Format(PyExc_TypeError, "indices: a list, a graph, and a set of types");
    Py_ssize_t count = PyList_GET_SIZE(args[0]);
    PyObject *list = PyList_New(count);
    if (list == NULL)
        return NULL;
    PyObject *last = NULL; /* a type that is in the set */
    for (Py_ssize_t k = 0; k < count; k++) {
        PyObject *e = PyList_GET_ITEM(args[0], k);
        if (is_expression(e) && SLOT(e, GRAPH) == args[1] && (SLOT(e, TYPE) == last || is_in(args[2], SLOT(e, TYPE))))
            last = SLOT(e, TYPE);
        else {
            Py_DECREF(list);
            Py_RETURN_NONE;
        }
        PyList_SET_ITEM(list, k, Py_NewRef(SLOT(e, INDEX)));
    }
    return list;
}

/* Lists of integers -------------------------------------------------------------------------------------------------- */

/* Read an integer of up to 30 bits where it lies, others by the function that is there for it; 0 if it is none. */
static inline int integer(PyObject *object, long long *value)
{
    if (!PyLong_CheckExact(object))
        return 0;
    PyLongObject *number = (PyLongObject *)object;
#if PY_VERSION_HEX >= 0x030C0000
    if (PyUnstable_Long_IsCompact(number)) {
        *value = PyUnstable_Long_CompactValue(number);
        return 1;
    }
#else
    if (Py_SIZE(number) >= -1 && Py_SIZE(number) <= 1) {
        *value = Py_SIZE(number) == 0 ? 0 : Py_SIZE(number) * (long long)number->ob_digit[0];
        return 1;
    }
#endif
    int overflow;
    *value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
}

PyDoc_STRVAR(copy_doc, "copy(numbers, out, segments)\n--\n\n"
                       "Copy segments of a list of integers into an int32 or int64 array: (place in the list, place in `out`,\n"
                       "length) of each, an int64 array. False, with part of it done, if an entry does not fit.");

static PyObject *copy(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    Py_buffer out, segments;
    if (n != 3 || !PyList_CheckExact(args[0]))
        return PyErr_Format(PyExc_TypeError, "copy: a list, and two arrays");
    if (PyObject_GetBuffer(args[1], &out, PyBUF_WRITABLE | PyBUF_ND))
        return NULL;
    if (PyObject_GetBuffer(args[2], &segments, PyBUF_ND)) {
        PyBuffer_Release(&out);
        return NULL;
    }
    const int64_t *segment = segments.buf;
    Py_ssize_t size = PyList_GET_SIZE(args[0]), room = out.len / out.itemsize, count = segments.len / 24;
    int fits = 1, known = segments.itemsize == 8 && (out.itemsize == 4 || out.itemsize == 8);
    for (Py_ssize_t s = 0; s < count && fits && known; s++, segment += 3) {
        int64_t from = segment[0], to = segment[1], length = segment[2];
        known = from >= 0 && to >= 0 && length >= 0 && length <= size - from && length <= room - to;
        PyObject **items = ((PyListObject *)args[0])->ob_item + from;
        long long value = 0;
        for (int64_t k = 0; k < length && fits && known; k++) {
#ifdef __GNUC__
            __builtin_prefetch(items[k + 24 < length ? k + 24 : k]);
#endif
            fits = integer(items[k], &value);
            if (out.itemsize == 8)
                ((int64_t *)out.buf)[to + k] = value;
            else {
                fits &= value == (int32_t)value;
                ((int32_t *)out.buf)[to + k] = (int32_t)value;
            }
        }
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&segments);
    if (!known)
        return PyErr_Format(PyExc_ValueError, "copy: integers of another size, or a segment beyond the list or the array");
    return PyBool_FromLong(fits);
}

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS, prepare_doc},
    {"short", new_short, METH_VARARGS, short_doc},
    {"nodes", (PyCFunction)(void (*)(void))nodes, METH_FASTCALL, nodes_doc},
    {"indices", (PyCFunction)(void (*)(void))indices, METH_FASTCALL, indices_doc},
    {"copy", (PyCFunction)(void (*)(void))copy, METH_FASTCALL, copy_doc},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "autobatch.recorder._recorder", "The short ways to record a node, in C.", -1, methods,
};

PyMODINIT_FUNC PyInit__recorder(void)
{
    if (ShortType == NULL && (ShortType = (PyTypeObject *)PyType_FromSpec(&short_spec)) == NULL)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (PyModule_AddIntConstant(module, "VERSION", VERSION) < 0 ||
                           PyModule_AddObjectRef(module, "function", (PyObject *)ShortType) < 0))
        Py_CLEAR(module);
    return module;
}
