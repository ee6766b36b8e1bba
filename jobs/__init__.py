"""The command line and whatever runs whole jobs. Composes the packages below and decides nothing."""
