"""The training panel: reads what verl writes, shows it, says what looks wrong. Imports no trainer."""
