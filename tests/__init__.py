"""The tests of the package; `tests.servers` holds the stand-ins for the outside worlds."""
