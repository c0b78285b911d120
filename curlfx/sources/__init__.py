"""From specifications to objects: networks, weights and images."""
