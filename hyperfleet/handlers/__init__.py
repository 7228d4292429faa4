"""One plain function for each operation of the contract, its SQL beside it."""
