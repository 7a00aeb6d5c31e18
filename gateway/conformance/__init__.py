"""`gateway conformance`: runs the server's requirements of the protocol against any server."""
