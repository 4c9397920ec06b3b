"""Texts that stand for a conversation of each shard, so that calls are forwarded to where that lies."""

KEYS = """
    SELECT DISTINCT ON (shard) shard, key FROM (
        SELECT get_shard_id_for_distribution_column('conversations', number::text) AS shard, number::text AS key
        FROM generate_series(1, 100 * (
            SELECT count(*) FROM pg_catalog.pg_dist_shard WHERE logicalrelid = 'conversations'::regclass)) AS number
    ) AS keys ORDER BY shard"""
