"""Where records are stored, one module for each kind of store."""
