"""The web console: pages for people who run a store, over the same functions as the admin API."""
