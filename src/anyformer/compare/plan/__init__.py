"""What training takes before it is begun: memory by part, operations, time and money."""
