"""One module per DVC stage: read the parameters, call the library, publish one artifact."""
