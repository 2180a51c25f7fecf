"""How a model spreads its tokens over the experts: outputs of the graph, and what they say."""
