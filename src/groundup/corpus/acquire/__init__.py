"""Where pages come from: crawling, Common Crawl, files, and the sources that name them."""
