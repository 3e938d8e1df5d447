"""`make soak`: the program attacked on purpose, in bounded time, with one page of figures. Not in `make test`."""
