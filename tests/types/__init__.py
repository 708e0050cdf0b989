"""Cases for the type checkers, and the tests that run the checkers."""
