"""Between processes and to the outside: shared memory, records as bytes, sockets."""
