"""What RA-CM3 means: documents, retriever, objective, generator, sampling and measures."""
