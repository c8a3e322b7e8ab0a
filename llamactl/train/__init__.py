"""How parameters move: data order, optimizer, one step, the loop."""
