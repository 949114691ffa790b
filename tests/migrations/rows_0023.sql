-- Rows for a database of revision 0023: some of each table, tasks in each step, and books that the audit finds clean.

INSERT INTO users (id, username, role, status, tokens_valid_from, created_at) VALUES
    (1, 'alice', 'admin', 'active', NULL, '2025-10-01 08:00:00.123000'),
    (17563793187762127, NULL, 'user', 'banned', '2025-10-02 08:00:00.456000', '2025-10-02 08:00:00.456000');

INSERT INTO api_keys (id, user_id, digest, prefix, name, scopes, expires_at, last_used_at, revoked_at, created_at) VALUES
    (1, 1, '5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8', 'sk-5e88', '生产', '["tasks"]', NULL, '2025-11-01 00:00:00.000000', NULL, '2025-10-01 08:00:01.000000');

INSERT INTO points_accounts (user_id, available, held, granted, spent, expired, seq, updated_at, next_expiry) VALUES
    (1, 1084, 141, 1295, 30, 40, 14, '2025-11-01 08:00:00.000000', '2099-01-01 00:00:00.000000');

INSERT INTO points_ledger (id, user_id, seq, kind, points, held, balance_after, task_id, phase, ref, remark, created_at) VALUES
    (1, 1, 1, 'grant', 1000, 0, 1000, NULL, NULL, 'order-1', '充值', '2025-10-01 08:01:00.000000'),
    (2, 1, 2, 'grant', 200, 0, 1200, NULL, NULL, 'order-2', '赠送', '2025-10-01 08:02:00.000000'),
    (3, 1, 3, 'deduct', -30, 30, 1170, 1, 'open', NULL, '速创生图', '2025-10-01 08:03:00.000000'),
    (4, 1, 4, 'deduct', -35, 35, 1135, 2, 'open', NULL, '速创生图', '2025-10-01 08:04:00.000000'),
    (5, 1, 5, 'settle', 0, -30, 1135, 1, 'close', NULL, '', '2025-10-01 08:05:00.000000'),
    (6, 1, 6, 'refund', 35, -35, 1170, 2, 'close', NULL, '任务失败退还', '2025-10-01 08:06:00.000000'),
    (7, 1, 7, 'deduct', -30, 30, 1140, 3, 'open', NULL, '速创生图', '2025-10-01 08:07:00.000000'),
    (8, 1, 8, 'deduct', -80, 80, 1060, 4, 'open', NULL, 'UniWorld', '2025-10-01 08:08:00.000000'),
    (9, 1, 9, 'deduct', -1, 1, 1059, 5, 'open', NULL, '图片标准化', '2025-10-01 08:09:00.000000'),
    (10, 1, 10, 'deduct', -30, 30, 1029, 6, 'open', NULL, '速创生图', '2025-10-01 08:10:00.000000'),
    (11, 1, 11, 'grant', 50, 0, 1079, NULL, NULL, 'code:1', '兑换码', '2025-10-01 08:11:00.000000'),
    (12, 1, 12, 'adjust', 5, 0, 1084, NULL, NULL, 'adjust-1', '补偿', '2025-10-01 08:12:00.000000'),
    (13, 1, 13, 'grant', 40, 0, 1124, NULL, NULL, 'order-3', '限时', '2025-10-01 08:13:00.000000'),
    (14, 1, 14, 'expire', -40, 0, 1084, NULL, NULL, 'expire:2', '过期', '2025-10-03 00:00:01.000000');

INSERT INTO points_lots (id, user_id, ref, origin_lot_id, granted, remaining, expired, expires_at, created_at) VALUES
    (1, 1, 'order-2', NULL, 200, 29, 0, '2099-01-01 00:00:00.000000', '2025-10-01 08:02:00.000000'),
    (2, 1, 'order-3', NULL, 40, 0, 40, '2025-10-03 00:00:00.000000', '2025-10-01 08:13:00.000000');

INSERT INTO points_lot_uses (task_id, lot_id, points) VALUES (1, 1, 30), (2, 1, 35), (3, 1, 30), (4, 1, 80), (5, 1, 1), (6, 1, 30);

INSERT INTO points_codes (id, batch, digest, prefix, points, lot_days, expires_at, voided_at, redeemed_by, redeemed_at, created_at) VALUES
    (1, 'autumn', 'd1', 'AAAA', 50, NULL, NULL, NULL, 1, '2025-10-01 08:11:00.000000', '2025-10-01 08:00:00.000000'),
    (2, 'autumn', 'd2', 'BBBB', 50, 30, '2026-10-01 00:00:00.000000', '2025-10-02 00:00:00.000000', NULL, NULL, '2025-10-01 08:00:00.000000'),
    (3, 'winter', 'd3', 'CCCC', 80, 30, NULL, NULL, NULL, NULL, '2025-10-01 08:00:00.000000');

INSERT INTO tasks (id, task_no, user_id, model_name, task_type, action, prompt, image_url, params, request, points_cost, status, progress, step, version, attempts, crashes, next_run_at, lease_until, deadline_at, steps, upstream_task_id, upstream, suspected_orphan, results, error_code, error_message, operator_note, created_at, updated_at, completed_at, idempotency_key, idempotency_digest, callback_url) VALUES
    (1, 'TASK-20251001160300000-0001', 1, 'sc_soraimg_text_1x1', 'text_to_image', 'see2ai_image_generation_fast_v1', '一只可爱的柴犬 🐕', NULL, '{}', '{"prompt":"一只可爱的柴犬 🐕"}', 30, 'completed', 100, 'done', 9, 0, 0, NULL, NULL, '2025-10-01 08:13:00.000000', '[{"at":"2025-10-01T08:03:00.000+00:00","step":"host","note":"SEE2AI is done"}]', 'job-1', '{"urls":["https://example.com/1.jpg"]}', 0, '[{"key":"results/1-1.jpg","type":"image"}]', NULL, NULL, NULL, '2025-10-01 08:03:00.000000', '2025-10-01 08:05:00.000000', '2025-10-01 08:05:00.000000', 'key-1', 'digest-1', 'https://example.com/hook'),
    (2, 'TASK-20251001160400000-0002', 1, 'sc_soraimg_img2img_1x1', 'image_to_image', 'see2ai_image_generation_fast_v1', '海浪', '"https://example.com/a.jpg"', '{}', '{"prompt":"海浪"}', 35, 'failed', 40, 'done', 5, 0, 0, NULL, NULL, '2025-10-01 08:14:00.000000', '[]', NULL, NULL, 1, NULL, 'UPSTREAM_FAILED', '生成失败', 'a note', '2025-10-01 08:04:00.000000', '2025-10-01 08:06:00.000000', '2025-10-01 08:06:00.000000', NULL, NULL, NULL),
    (3, 'TASK-20251001160700000-0003', 1, 'sc_soraimg_text_1x1', 'text_to_image', 'see2ai_image_generation_fast_v1', '猫', NULL, '{"resolution":"2K"}', '{"prompt":"猫"}', 30, 'processing', 95, 'host', 7, 1, 0, '2025-10-01 08:07:30.000000', NULL, '2099-01-01 00:00:00.000000', '[{"at":"2025-10-01T08:07:20.000+00:00","step":"host","note":"SEE2AI is done"}]', 'job-3', '{"urls":["https://example.com/3.jpg"]}', 0, NULL, NULL, NULL, NULL, '2025-10-01 08:07:00.000000', '2025-10-01 08:07:20.000000', NULL, NULL, NULL, NULL),
    (4, 'TASK-20251001160800000-0004', 1, 'sc_uniworld_text_1x1', 'text_to_image', 'see2ai_image_uniworld_v2', '山', NULL, '{}', '{"prompt":"山"}', 80, 'processing', 50, 'poll', 4, 0, 1, '2025-10-01 08:08:10.000000', '2025-10-01 08:08:40.000000', '2099-01-01 00:00:00.000000', '[]', 'job-4', '{"troubles":1}', 0, NULL, NULL, NULL, NULL, '2025-10-01 08:08:00.000000', '2025-10-01 08:08:10.000000', NULL, NULL, NULL, NULL),
    (5, 'TASK-20251001160900000-0005', 1, 'sc_image_normalize', 'image_normalize', 'see2ai_image_normalize_v1', '', '["https://example.com/a.jpg"]', '{}', '{}', 1, 'queued', 0, 'prepare', 1, 0, 0, '2025-10-01 08:09:10.000000', NULL, '2099-01-01 00:00:00.000000', '[]', NULL, NULL, 0, NULL, NULL, NULL, NULL, '2025-10-01 08:09:00.000000', '2025-10-01 08:09:00.000000', NULL, NULL, NULL, NULL),
    (6, 'TASK-20251001161000000-0006', 1, 'sc_soraimg_text_1x1', 'text_to_image', 'see2ai_image_generation_fast_v1', '狗', NULL, '{}', '{"prompt":"狗"}', 30, 'created', 0, 'submit', 0, 0, 0, '2025-10-01 08:10:10.000000', NULL, '2099-01-01 00:00:00.000000', '[]', NULL, NULL, 0, NULL, NULL, NULL, NULL, '2025-10-01 08:10:00.000000', '2025-10-01 08:10:00.000000', NULL, 'key-6', 'digest-6', NULL),
    (7, 'TASK-20251001161100000-0007', 1, 'free_model', 'text_to_image', 'see2ai_image_generation_fast_v1', '鸟', NULL, '{}', '{"prompt":"鸟"}', 0, 'queued', 0, 'submitting', 2, 0, 0, '2025-10-01 08:11:10.000000', '2025-10-01 08:11:40.000000', '2099-01-01 00:00:00.000000', '[]', NULL, NULL, 0, NULL, NULL, NULL, NULL, '2025-10-01 08:11:00.000000', '2025-10-01 08:11:10.000000', NULL, NULL, NULL, NULL);

INSERT INTO provider_state (provider, version, refuses_jobs, refuses_looks, reason, pause_seconds, opened_at, next_probe_at, probe_until, updated_at) VALUES
    ('see2ai', 7, 1, 0, 'insufficient balance', 8.0, '2025-10-01 08:00:00.000000', '2025-10-01 08:00:08.000000', NULL, '2025-10-01 08:00:00.000000');

INSERT INTO chores (name, version, due_at, lease_until, done_at, result) VALUES
    ('audit', 3, '2099-01-01 00:00:00.000000', NULL, '2025-11-01 00:00:00.000000', 0);

INSERT INTO model_durations (model_name, usual_seconds, samples, updated_at) VALUES
    ('sc_soraimg_text_1x1', 12.5, 20, '2025-11-01 00:00:00.000000');

INSERT INTO webhook_secrets (user_id, secret, previous, previous_until, created_at) VALUES
    (1, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', NULL, NULL, '2025-10-01 08:00:00.000000');

INSERT INTO webhook_endpoints (id, user_id, url, events, secret, previous, previous_until, failing_since, failed_at, disabled_at, disabled_reason, created_at, updated_at) VALUES
    (1, 1, 'https://example.com/all', '["task.completed"]', 'whsec_1', NULL, NULL, NULL, NULL, '2025-10-05 00:00:00.000000', 'failing', '2025-10-01 08:00:00.000000', '2025-10-05 00:00:00.000000');

INSERT INTO webhook_deliveries (id, user_id, task_id, endpoint_id, host, status, version, attempts, next_run_at, lease_until, give_up_at, outcome, status_code, duration_ms, created_at, delivered_at) VALUES
    (1, 1, 1, 0, 'example.com:443', 'delivered', 2, 1, NULL, NULL, '2025-10-02 08:05:00.000000', 'delivered', 200, 31, '2025-10-01 08:05:00.000000', '2025-10-01 08:05:01.000000'),
    (2, 1, 2, 1, 'example.com:443', 'pending', 1, 3, '2025-10-01 09:00:00.000000', NULL, '2025-10-02 08:06:00.000000', 'status', 500, 12, '2025-10-01 08:06:00.000000', NULL);

-- What an operator has changed: a price, a model of their own, and a model that is no longer there.
UPDATE points_config SET points_cost = 28 WHERE model_name = 'sc_soraimg_text_1x1';
INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES
    ('own_model', '自有模型', 40, 'text_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"9:16"}', '{}', NULL, 1, 500, '2025-10-01 08:00:00.000000', '2025-10-01 08:00:00.000000');
DELETE FROM points_config WHERE model_name = 'sc_uniworld_text_9x16';
