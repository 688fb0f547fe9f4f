"""A model of lives: from a seed a history of requests and of deaths, faults and restarts, judged by an oracle."""
