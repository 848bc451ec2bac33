"""One file per framework that agentmem fits into; none of them imports its framework before it is used."""
