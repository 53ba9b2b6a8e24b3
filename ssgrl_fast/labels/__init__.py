"""Labels and what is known of the classes: label matrices, class names, co-occurrence graphs, word vectors."""
