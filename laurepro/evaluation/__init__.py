"""How a score is computed: inference, counts over pixels, metrics from them; and label maps of your own images."""
