"""One file a family: what its processor does beyond what all do. A family's architecture names its class."""
