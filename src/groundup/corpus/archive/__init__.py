"""Web archives: WARC, ARC, WACZ, their records, compression and HTTP messages."""
