BEGIN TRANSACTION;
CREATE TABLE archived (
    day TEXT NOT NULL, source TEXT NOT NULL, requests INTEGER NOT NULL, requests_j REAL NOT NULL,
    balances INTEGER NOT NULL, measured_j REAL NOT NULL, attributed_j REAL NOT NULL, idle_j REAL NOT NULL,
    engine_overhead_j REAL NOT NULL, host_bubble_j REAL NOT NULL, unattributed TEXT NOT NULL, PRIMARY KEY (day, source)
) STRICT;
CREATE TABLE balances (
    gpu_uuid TEXT NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, measured_j REAL NOT NULL,
    attributed_j REAL NOT NULL, idle_j REAL NOT NULL, engine_overhead_j REAL NOT NULL, host_bubble_j REAL NOT NULL,
    unattributed TEXT NOT NULL, source TEXT NOT NULL, boot_id TEXT NOT NULL, wall_time REAL,
    PRIMARY KEY (boot_id, gpu_uuid, end_ns)
) STRICT;
INSERT INTO "balances" VALUES('GPU-0',9999999900,10000000000,10.0,3.0,5.5,0.5,0.25,'{"stale": 1.0}','measured','boot',1700000010.0);
INSERT INTO "balances" VALUES('GPU-0',9999999900,10000000000,10.0,3.0,5.5,0.5,0.25,'{"stale": 1.0}','measured','other',1700000010.0);
CREATE TABLE checked (
    task TEXT NOT NULL, model TEXT NOT NULL, arm TEXT NOT NULL, correct INTEGER, output_tokens INTEGER NOT NULL, eta_task REAL,
    fast REAL, deep_strict REAL, deep_lenient REAL
) STRICT;
CREATE TABLE eta (
    receipt_id TEXT PRIMARY KEY, lenient_at_most REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    unclassified REAL NOT NULL, method TEXT NOT NULL, reliability REAL
, unit TEXT NOT NULL DEFAULT 'characters', strict REAL, lenient REAL) STRICT;
CREATE TABLE eta_deep (
    receipt_id TEXT PRIMARY KEY, lenient_at_most REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    unclassified REAL NOT NULL, method TEXT NOT NULL, reliability REAL, unit TEXT NOT NULL, strict REAL, lenient REAL
) STRICT;
CREATE TABLE nodes (
    name TEXT PRIMARY KEY, node_boot_id TEXT NOT NULL, since_ns INTEGER NOT NULL, boot_id TEXT NOT NULL, counters TEXT NOT NULL
) STRICT;
INSERT INTO "nodes" VALUES('10.0.0.2:9431','there',7,'boot','[{"gpu_uuid": "GPU-0", "parts": [], "board_name": "H100", "scope": "gpu", "kind": "nvml", "source": "measured", "limit_w": 700.0}]');
CREATE TABLE requests (
    boot_id TEXT NOT NULL, engine TEXT NOT NULL, engine_started_ns INTEGER NOT NULL, number INTEGER NOT NULL,
    request_id TEXT NOT NULL, receipt_id TEXT, model TEXT NOT NULL, arm TEXT NOT NULL,
    arrival_ns INTEGER NOT NULL, first_token_ns INTEGER, finished_ns INTEGER,
    prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, prefill_tokens INTEGER NOT NULL,
    decode_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, finish_reason TEXT,
    prompt_j REAL NOT NULL, output_j REAL NOT NULL, marginal_j REAL NOT NULL, recomputed_j REAL NOT NULL,
    draft_waste_j REAL NOT NULL, avoided_j REAL NOT NULL, error_j REAL NOT NULL,
    settled INTEGER NOT NULL, method TEXT NOT NULL, source TEXT NOT NULL, wall_time REAL NOT NULL,
    PRIMARY KEY (boot_id, engine, engine_started_ns, number)
) STRICT;
INSERT INTO "requests" VALUES('boot','engine-0',5,0,'r0','abababababababababababababababab','m','entrace',0,2,3,10,0,10,4,5,'stop',1.0,2.0,0.5,0.0,0.0,0.0,0.1,1,'step-cost','measured',1700000000.0);
CREATE TABLE resume (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE slack (
    receipt_id TEXT NOT NULL, category TEXT NOT NULL, share REAL NOT NULL, joule_share REAL, marginal_share REAL, PRIMARY KEY (receipt_id, category)
) STRICT;
CREATE TABLE slack_deep (
    receipt_id TEXT NOT NULL, category TEXT NOT NULL, share REAL NOT NULL, joule_share REAL, marginal_share REAL,
    PRIMARY KEY (receipt_id, category)
) STRICT;
CREATE TABLE spent (
    budget TEXT NOT NULL, window TEXT NOT NULL, start_s INTEGER NOT NULL, source TEXT NOT NULL,
    energy_j REAL NOT NULL, noise_j2 REAL NOT NULL, common_j REAL NOT NULL, PRIMARY KEY (budget, window, start_s, source)
) STRICT;
CREATE TABLE wastes (receipt_id TEXT PRIMARY KEY, waste TEXT NOT NULL) STRICT;
CREATE INDEX requests_by_receipt ON requests (receipt_id);
CREATE VIEW fate_by_request AS
SELECT requests.*, CASE
    WHEN finish_reason = 'length' THEN 'truncated'
    WHEN waste != 'abandoned' OR finish_reason = 'abort' THEN waste
END AS fate
FROM requests LEFT JOIN wastes USING (receipt_id);
CREATE VIEW categories_by_request AS
SELECT receipt_id, request_id, category, fate AS waste, model, arm, share, share * output_tokens AS tokens,
    coalesce(joule_share, share) * (output_j - min(draft_waste_j, output_j)) AS joules,
    CASE WHEN prompt_j + output_j > 0
        THEN coalesce(marginal_share, share) * marginal_j * output_j / (prompt_j + output_j) END AS marginal_joules,
    source, settled
FROM slack JOIN fate_by_request USING (receipt_id);
CREATE VIEW slack_by_request AS SELECT * FROM categories_by_request WHERE category NOT IN ('required', 'optional');
CREATE VIEW needed_by_request AS SELECT * FROM categories_by_request WHERE category IN ('required', 'optional');
CREATE VIEW waste_by_request AS
SELECT receipt_id, request_id, fate AS category, model, arm, output_tokens AS tokens, output_j AS joules,
    CASE WHEN prompt_j + output_j > 0 THEN marginal_j * output_j / (prompt_j + output_j) END AS marginal_joules,
    source, settled
FROM fate_by_request WHERE fate IS NOT NULL
UNION ALL
SELECT receipt_id, request_id, 'draft', model, arm, NULL, min(draft_waste_j, output_j), NULL, source, settled
FROM fate_by_request WHERE fate IS NULL AND draft_waste_j > 0;
CREATE INDEX requests_by_transfer ON requests (substr(request_id, -41, 33)) WHERE substr(request_id, -41, 1) = 'p';
COMMIT;
PRAGMA user_version = 7;
