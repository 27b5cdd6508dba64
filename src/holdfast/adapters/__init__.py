"""Our attacks behind the interfaces of other tools."""
