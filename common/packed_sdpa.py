"""verl's ``model.external_lib`` for machines without flash-attn: packed rows through common/packed_attention.py."""

from common.packed_attention import install

install()
