"""Conversations as token ids and a loss mask: made once before launch, cached, and read by verl's SFT trainer."""
