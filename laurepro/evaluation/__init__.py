"""How a score is computed: inference, counts over pixels, metrics from them; and masks of a user's own images."""
