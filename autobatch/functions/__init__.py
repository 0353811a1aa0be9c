"""The public functions that record nodes, in DyNet's spelling: one module for each family of ops, one function for each op.

tables        parameters, rows of look-up tables
elementwise   functions of one argument, number by number
arithmetic    the same of several arguments; sums of lists
linear        products, distances, linear algebra
reductions    sums, means, norms, extremes, over elements, dims or the minibatch
normalization layer and weight normalisation
selection     joining, reshaping, selecting
convolution   convolution of images, sequences and vectors; pooling
lstm          a step of an LSTM, in parts
losses        softmax family, losses
noise         noise, dropout, inputs of random numbers
evaluation    several expressions computed in one pass
"""
