"""The exceptions of all rooms, and the form of their messages.

Three kinds: the caller's argument (`ShapeError`, `ArgumentError`, `ConstructionError`, `TraceError`: ValueErrors,
`OperandError`: a TypeError), the state of the world (`StaleExpressionError`, `DeviceError`, `NumericalError`,
`ModelFileError`: RuntimeErrors), and our own bug (`InternalError`). Where DyNet raises another built-in type than the kind
asks for, the class is of both types.
"""


def message(problem: str, got: str = "", expected: str = "", cure: str = "") -> str:
    """Return the text of an error in the form of the house: what is wrong, what was given, what fits, what to try."""
    lines = [problem]
    lines += [f"  {label:<8}  {text}" for label, text in (("got", got), ("expected", expected), ("try", cure)) if text]
    return "\n".join(lines)


class _Alone(Exception):
    """Shown without the exception that was being handled: recording tries a short way first, which may fail."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.__suppress_context__ = True


class ShapeError(_Alone, ValueError):
    """Shapes do not fit each other, or not the operation.

    Cause::

        W = model.add_parameters((10, 20))
        y = W * ab.inputVector([1.0] * 30)  # 20 columns times 30 rows

    Cure::

        y = W * ab.inputVector([1.0] * 20)
    """


class ArgumentError(_Alone, ValueError):
    """An argument that is no shape has a value that makes no sense there.

    Cause::

        model.add_parameters((10, 20), init="xavier")

    Cure::

        model.add_parameters((10, 20), init="glorot")
    """


class ConstructionError(ArgumentError, RuntimeError):
    """A parameter or a collection cannot be made as asked (DyNet raises RuntimeError).

    Cause::

        model.add_parameters((10, 20), name="W_out")  # "_" separates a name from its number

    Cure::

        model.add_parameters((10, 20), name="Wout")
    """


class TraceError(ArgumentError):
    """A function does what a cell cannot do: a cell runs once, on stand-ins without numbers, and is then recorded as one node.

    Cause::

        @ab.cell
        def layer(x):
            return ab.tanh(W * x) if x.value() > 0 else x

    Cure::

        @ab.cell
        def layer(x):
            return ab.tanh(W * x)

        y = layer(x) if x.value() > 0 else x
    """


class EmptyListError(ArgumentError, AssertionError):
    """A list of expressions is empty or has a hole (DyNet raises AssertionError).

    Cause::

        ab.esum([])

    Cure::

        ab.esum(losses) if losses else ab.zeros((1,))
    """


class NegativeIndexError(ArgumentError, OverflowError):
    """A negative number where an index counts from the front (DyNet raises OverflowError).

    Cause::

        ab.pick(x, -1)

    Cure::

        x[-1]
    """


class IndexRangeError(ArgumentError, IndexError):
    """An index is out of range (in DyNet an IndexError for ``e[i]``, a ValueError for the functions: this is both).

    Cause::

        x = ab.inputVector([1.0, 2.0])
        x[2]

    Cure::

        x[1]
    """


class OperandError(_Alone, TypeError, NotImplementedError):
    """An operand is not an expression, and cannot be made one.

    Cause::

        y = x + np.ones(3)

    Cure::

        y = x + ab.inputTensor(np.ones(3))
    """


class StaleExpressionError(_Alone, RuntimeError, ValueError):
    """An expression is used after the graph it belongs to was dropped.

    Cause::

        x = ab.inputVector([1.0])
        ab.renew_cg()
        y = ab.tanh(x)

    Cure::

        ab.renew_cg()
        x = ab.inputVector([1.0])
        y = ab.tanh(x)
    """


class DeviceError(_Alone, RuntimeError):
    """The device that was asked for is unknown, or absent from this machine.

    Cause::

        model.add_parameters((10,), device="GPU:0")  # on a machine without a card

    Cure::

        model.add_parameters((10,))
    """


class DeviceMemoryError(DeviceError, MemoryError):
    """The card has no room for what is asked; the message tells how much that is, what is free, and what we hold.

    Cause::

        losses = [model_of(sentence) for sentence in corpus]  # a graph of a million sentences
        ab.esum(losses).backward()

    Cure::

        for sentences in minibatches(corpus, 64):
            ab.renew_cg()
            ab.esum([model_of(sentence) for sentence in sentences]).backward()
    """


class NumericalError(_Alone, RuntimeError):
    """A NaN or an infinity was found where it would spread.

    Cause::

        loss = ab.log(ab.scalarInput(0.0) * w)
        loss.backward()
        trainer.update()  # the norm of the gradients is not finite; nothing was changed

    Cure::

        model.reset_gradient()  # drop the gradients of this example and go on
    """


class ModelFileError(_Alone, RuntimeError):
    """A model file is damaged, cut off, of another form, or does not fit what is to be filled; nothing was changed.

    Cause::

        model.add_parameters((10, 20))
        model.populate("weights-of-30-columns.model")

    Cure::

        model.add_parameters((10, 30))
    """


class MissingFileError(ModelFileError, FileNotFoundError):
    """A model file is not there, or cannot be read (DyNet: RuntimeError, of ``dy.load`` FileNotFoundError; this is both).

    Cause::

        model.populate("a-name-with-a-slip.model")

    Cure::

        model.populate("a-name.model")
    """


class InternalError(_Alone, RuntimeError):
    """A promise between two rooms of this library was broken: our bug, not yours.

    Cure::

        report it, with the text of the error and the program that led to it
    """
