"""An HTTP server of rewards: what clients ask in several protocols, gathered into packs."""
