"""Template families of the generated instruction set. Each lists training templates and held-out ones."""
