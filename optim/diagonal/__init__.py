"""Adam and Gauss-Newton as diagonals in a basis: the study of both."""
