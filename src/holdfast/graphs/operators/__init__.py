"""One file per operator; found by module discovery."""
