"""Stand-ins for the outside worlds, each on a real loopback socket: real clients speak to them, nothing is mocked."""
