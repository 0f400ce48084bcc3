"""Camera models: one file per lens, with its projection, the rows of its Jacobian and their vjp."""
