-- The schema of the last version before the first release, as its `gateway migrate --sql` printed it. Never edited.
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE users (
    id BIGINT NOT NULL AUTO_INCREMENT,
    username VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    `role` VARCHAR(16) NOT NULL DEFAULT 'user',
    status VARCHAR(16) NOT NULL DEFAULT 'active',
    tokens_valid_from DATETIME(3),
    created_at DATETIME(3) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT ck_users_role CHECK (role IN ('user', 'admin')),
    CONSTRAINT ck_users_status CHECK (status IN ('active', 'banned')),
    CONSTRAINT uq_users_username UNIQUE (username)
)CHARSET=utf8mb4 ENGINE=InnoDB;

INSERT INTO alembic_version (version_num) VALUES ('0001');

-- Running upgrade 0001 -> 0002

CREATE TABLE api_keys (
    id BIGINT NOT NULL AUTO_INCREMENT,
    user_id BIGINT NOT NULL,
    digest VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    prefix VARCHAR(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    name VARCHAR(100) NOT NULL DEFAULT '',
    scopes MEDIUMTEXT NOT NULL,
    expires_at DATETIME(3),
    last_used_at DATETIME(3),
    revoked_at DATETIME(3),
    created_at DATETIME(3) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT uq_api_keys_digest UNIQUE (digest)
)CHARSET=utf8mb4 ENGINE=InnoDB;

CREATE INDEX ix_api_keys_user_id ON api_keys (user_id);

UPDATE alembic_version SET version_num='0002' WHERE alembic_version.version_num = '0001';

-- Running upgrade 0002 -> 0003

CREATE TABLE points_config (
    id BIGINT NOT NULL AUTO_INCREMENT,
    model_name VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    description VARCHAR(255) NOT NULL,
    points_cost BIGINT NOT NULL,
    task_type VARCHAR(32) NOT NULL,
    action VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    params MEDIUMTEXT NOT NULL,
    defaults MEDIUMTEXT NOT NULL,
    price_rules MEDIUMTEXT,
    enabled BOOL NOT NULL DEFAULT '1',
    sort INTEGER NOT NULL DEFAULT '0',
    created_at DATETIME(3) NOT NULL,
    updated_at DATETIME(3) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT ck_points_config_points_cost CHECK (points_cost >= 0),
    CONSTRAINT uq_points_config_model_name UNIQUE (model_name)
)CHARSET=utf8mb4 ENGINE=InnoDB;

UPDATE alembic_version SET version_num='0003' WHERE alembic_version.version_num = '0002';

-- Running upgrade 0003 -> 0004

CREATE TABLE points_accounts (
    user_id BIGINT NOT NULL,
    available BIGINT NOT NULL DEFAULT '0',
    held BIGINT NOT NULL DEFAULT '0',
    granted BIGINT NOT NULL DEFAULT '0',
    spent BIGINT NOT NULL DEFAULT '0',
    expired BIGINT NOT NULL DEFAULT '0',
    seq BIGINT NOT NULL DEFAULT '0',
    updated_at DATETIME(3) NOT NULL,
    PRIMARY KEY (user_id),
    CONSTRAINT ck_points_accounts_available CHECK (available >= 0),
    CONSTRAINT ck_points_accounts_conservation CHECK (granted = available + held + spent + expired),
    CONSTRAINT ck_points_accounts_totals CHECK (granted >= 0 AND spent >= 0 AND expired >= 0),
    CONSTRAINT ck_points_accounts_held CHECK (held >= 0)
)CHARSET=utf8mb4 ENGINE=InnoDB;

UPDATE alembic_version SET version_num='0004' WHERE alembic_version.version_num = '0003';

-- Running upgrade 0004 -> 0005

CREATE TABLE points_ledger (
    id BIGINT NOT NULL AUTO_INCREMENT,
    user_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    kind VARCHAR(16) NOT NULL,
    points BIGINT NOT NULL,
    held BIGINT NOT NULL,
    balance_after BIGINT NOT NULL,
    task_id BIGINT,
    phase VARCHAR(8),
    ref VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    remark VARCHAR(255) NOT NULL DEFAULT '',
    created_at DATETIME(3) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT ck_points_ledger_shape CHECK ((kind = 'deduct' AND phase = 'open' AND task_id IS NOT NULL AND held >= 0 AND points = -held) OR (kind = 'settle' AND phase = 'close' AND task_id IS NOT NULL AND held <= 0 AND points = 0) OR (kind = 'refund' AND phase = 'close' AND task_id IS NOT NULL AND held <= 0 AND points = -held) OR (kind IN ('grant', 'expire', 'adjust') AND phase IS NULL AND held = 0)),
    CONSTRAINT ck_points_ledger_grant CHECK (kind <> 'grant' OR (ref IS NOT NULL AND points > 0)),
    CONSTRAINT ck_points_ledger_expire CHECK (kind <> 'expire' OR (ref IS NOT NULL AND points < 0)),
    CONSTRAINT ck_points_ledger_adjust CHECK (kind <> 'adjust' OR ref IS NOT NULL),
    CONSTRAINT ck_points_ledger_kind CHECK (kind IN ('grant', 'deduct', 'settle', 'refund', 'expire', 'adjust')),
    CONSTRAINT ck_points_ledger_balance_after CHECK (balance_after >= 0),
    CONSTRAINT uq_points_ledger_ref UNIQUE (ref),
    CONSTRAINT uq_points_ledger_task_id_phase UNIQUE (task_id, phase),
    CONSTRAINT uq_points_ledger_user_id_seq UNIQUE (user_id, seq)
)CHARSET=utf8mb4 ENGINE=InnoDB;

UPDATE alembic_version SET version_num='0005' WHERE alembic_version.version_num = '0004';

-- Running upgrade 0005 -> 0006

CREATE TRIGGER points_ledger_no_update BEFORE UPDATE ON points_ledger FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'points_ledger is append-only';

CREATE TRIGGER points_ledger_no_delete BEFORE DELETE ON points_ledger FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'points_ledger is append-only';

UPDATE alembic_version SET version_num='0006' WHERE alembic_version.version_num = '0005';

-- Running upgrade 0006 -> 0007

CREATE TABLE tasks (
    id BIGINT NOT NULL AUTO_INCREMENT,
    task_no VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    user_id BIGINT NOT NULL,
    model_name VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    task_type VARCHAR(32) NOT NULL,
    action VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    prompt MEDIUMTEXT COLLATE utf8mb4_unicode_520_ci NOT NULL,
    image_url MEDIUMTEXT,
    params MEDIUMTEXT NOT NULL,
    request MEDIUMTEXT NOT NULL,
    points_cost BIGINT NOT NULL,
    status VARCHAR(16) NOT NULL,
    progress INTEGER NOT NULL DEFAULT '0',
    step VARCHAR(16) NOT NULL,
    version INTEGER NOT NULL DEFAULT '0',
    attempts INTEGER NOT NULL DEFAULT '0',
    crashes INTEGER NOT NULL DEFAULT '0',
    next_run_at DATETIME(3),
    lease_until DATETIME(3),
    deadline_at DATETIME(3) NOT NULL,
    steps MEDIUMTEXT NOT NULL,
    upstream_task_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    upstream MEDIUMTEXT,
    suspected_orphan BOOL NOT NULL DEFAULT '0',
    results MEDIUMTEXT,
    error_code VARCHAR(64),
    error_message VARCHAR(255),
    operator_note MEDIUMTEXT,
    created_at DATETIME(3) NOT NULL,
    updated_at DATETIME(3) NOT NULL,
    completed_at DATETIME(3),
    PRIMARY KEY (id),
    CONSTRAINT ck_tasks_results CHECK ((status = 'completed') = (results IS NOT NULL)),
    CONSTRAINT ck_tasks_ended CHECK ((status IN ('completed', 'failed')) = (step = 'done') AND (step = 'done') = (completed_at IS NOT NULL) AND (step = 'done') = (next_run_at IS NULL)),
    CONSTRAINT ck_tasks_status CHECK (status IN ('created', 'queued', 'processing', 'completed', 'failed')),
    CONSTRAINT ck_tasks_step CHECK (step IN ('prepare', 'submit', 'submitting', 'poll', 'host', 'done')),
    CONSTRAINT ck_tasks_points_cost CHECK (points_cost >= 0),
    CONSTRAINT ck_tasks_progress CHECK (progress BETWEEN 0 AND 100),
    CONSTRAINT uq_tasks_action_upstream_task_id UNIQUE (action, upstream_task_id),
    CONSTRAINT uq_tasks_task_no UNIQUE (task_no)
)CHARSET=utf8mb4 ENGINE=InnoDB;

CREATE INDEX ix_tasks_due ON tasks (next_run_at);

CREATE INDEX ix_tasks_live ON tasks (user_id, completed_at);

CREATE INDEX ix_tasks_newest ON tasks (user_id, created_at);

UPDATE alembic_version SET version_num='0007' WHERE alembic_version.version_num = '0006';

-- Running upgrade 0007 -> 0008

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_soraimg_text_auto', '速创生图 文生图-自动比例', 30, 'text_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"auto"}', '{}', NULL, true, 10, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_soraimg_text_1x1', '速创生图 文生图-正方形(1:1)', 30, 'text_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"1:1"}', '{}', NULL, true, 20, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_soraimg_text_2x3', '速创生图 文生图-竖图(2:3)', 30, 'text_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"2:3"}', '{}', NULL, true, 30, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_soraimg_text_3x2', '速创生图 文生图-横图(3:2)', 30, 'text_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"3:2"}', '{}', NULL, true, 40, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_soraimg_img2img_auto', '速创生图 图生图-自动比例', 35, 'image_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"auto"}', '{}', NULL, true, 50, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_soraimg_img2img_1x1', '速创生图 图生图-正方形(1:1)', 35, 'image_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"1:1"}', '{}', NULL, true, 60, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_soraimg_img2img_2x3', '速创生图 图生图-竖图(2:3)', 35, 'image_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"2:3"}', '{}', NULL, true, 70, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_soraimg_img2img_3x2', '速创生图 图生图-横图(3:2)', 35, 'image_to_image', 'see2ai_image_generation_fast_v1', '{"aspectRatio":"3:2"}', '{}', NULL, true, 80, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

UPDATE alembic_version SET version_num='0008' WHERE alembic_version.version_num = '0007';

-- Running upgrade 0008 -> 0009

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_uniworld_text_1x1', 'UniWorld 文生图-正方形(1:1)', 80, 'text_to_image', 'see2ai_image_uniworld_v2', '{"canvasW":1024,"canvasH":1024}', '{}', NULL, true, 110, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_uniworld_text_2x3', 'UniWorld 文生图-竖图(2:3)', 80, 'text_to_image', 'see2ai_image_uniworld_v2', '{"canvasW":832,"canvasH":1248}', '{}', NULL, true, 120, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_uniworld_text_3x2', 'UniWorld 文生图-横图(3:2)', 80, 'text_to_image', 'see2ai_image_uniworld_v2', '{"canvasW":1248,"canvasH":832}', '{}', NULL, true, 130, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_uniworld_text_16x9', 'UniWorld 文生图-横屏(16:9)', 80, 'text_to_image', 'see2ai_image_uniworld_v2', '{"canvasW":1344,"canvasH":756}', '{}', NULL, true, 140, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_uniworld_text_9x16', 'UniWorld 文生图-竖屏(9:16)', 80, 'text_to_image', 'see2ai_image_uniworld_v2', '{"canvasW":756,"canvasH":1344}', '{}', NULL, true, 150, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

UPDATE alembic_version SET version_num='0009' WHERE alembic_version.version_num = '0008';

-- Running upgrade 0009 -> 0010

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_video_text_standard', '速创视频 文生视频-标准版', 0, 'text_to_video', 'see2ai_video_generation_v1', '{"version":"standard"}', '{}', '[{"param":"duration","each":80,"as":{"-1":15}},{"param":"resolution","times":{"480p":"0.45","720p":1,"1080p":"2.25"}},{"param":"forceAssetUpload","times":{"true":2,"false":1}}]', true, 210, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_video_text_fast', '速创视频 文生视频-快速版', 0, 'text_to_video', 'see2ai_video_generation_v1', '{"version":"fast"}', '{}', '[{"param":"duration","each":64,"as":{"-1":15}},{"param":"resolution","times":{"480p":"0.45","720p":1,"1080p":"2.25"}},{"param":"forceAssetUpload","times":{"true":2,"false":1}}]', true, 220, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_video_img2video_standard', '速创视频 图生视频-标准版', 0, 'image_to_video', 'see2ai_video_generation_v1', '{"version":"standard"}', '{}', '[{"param":"duration","each":80,"as":{"-1":15}},{"param":"resolution","times":{"480p":"0.45","720p":1,"1080p":"2.25"}},{"param":"forceAssetUpload","times":{"true":2,"false":1}}]', true, 230, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_video_img2video_fast', '速创视频 图生视频-快速版', 0, 'image_to_video', 'see2ai_video_generation_v1', '{"version":"fast"}', '{}', '[{"param":"duration","each":64,"as":{"-1":15}},{"param":"resolution","times":{"480p":"0.45","720p":1,"1080p":"2.25"}},{"param":"forceAssetUpload","times":{"true":2,"false":1}}]', true, 240, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

UPDATE alembic_version SET version_num='0010' WHERE alembic_version.version_num = '0009';

-- Running upgrade 0010 -> 0011

INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort, created_at, updated_at) VALUES ('sc_image_normalize', '图片标准化', 1, 'image_normalize', 'see2ai_image_normalize_v1', '{}', '{}', NULL, true, 310, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3)) ON DUPLICATE KEY UPDATE description = VALUES(description), points_cost = VALUES(points_cost), task_type = VALUES(task_type), action = VALUES(action), params = VALUES(params), defaults = VALUES(defaults), price_rules = VALUES(price_rules), enabled = VALUES(enabled), sort = VALUES(sort), updated_at = VALUES(updated_at);

UPDATE alembic_version SET version_num='0011' WHERE alembic_version.version_num = '0010';

-- Running upgrade 0011 -> 0012

ALTER TABLE tasks ADD COLUMN idempotency_key VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

ALTER TABLE tasks ADD COLUMN idempotency_digest VARCHAR(64);

CREATE UNIQUE INDEX uq_tasks_user_id_idempotency_key ON tasks (user_id, idempotency_key);

UPDATE alembic_version SET version_num='0012' WHERE alembic_version.version_num = '0011';

-- Running upgrade 0012 -> 0013

CREATE TABLE points_lots (
    id BIGINT NOT NULL AUTO_INCREMENT,
    user_id BIGINT NOT NULL,
    ref VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    origin_lot_id BIGINT,
    granted BIGINT NOT NULL,
    remaining BIGINT NOT NULL,
    expired BIGINT NOT NULL DEFAULT '0',
    expires_at DATETIME(3) NOT NULL,
    created_at DATETIME(3) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT ck_points_lots_points CHECK (granted > 0 AND remaining >= 0 AND expired >= 0),
    CONSTRAINT ck_points_lots_granted CHECK (remaining + expired <= granted),
    CONSTRAINT ck_points_lots_origin CHECK ((ref IS NULL) = (origin_lot_id IS NOT NULL)),
    CONSTRAINT uq_points_lots_ref UNIQUE (ref)
)CHARSET=utf8mb4 ENGINE=InnoDB;

CREATE INDEX ix_points_lots_live ON points_lots (user_id, remaining, expires_at);

CREATE TABLE points_lot_uses (
    task_id BIGINT NOT NULL,
    lot_id BIGINT NOT NULL,
    points BIGINT NOT NULL,
    PRIMARY KEY (task_id, lot_id),
    CONSTRAINT ck_points_lot_uses_points CHECK (points > 0)
)CHARSET=utf8mb4 ENGINE=InnoDB;

ALTER TABLE points_accounts ADD COLUMN next_expiry DATETIME(3);

CREATE INDEX ix_points_accounts_next_expiry ON points_accounts (next_expiry);

UPDATE alembic_version SET version_num='0013' WHERE alembic_version.version_num = '0012';

-- Running upgrade 0013 -> 0014

CREATE TABLE points_codes (
    id BIGINT NOT NULL AUTO_INCREMENT,
    batch VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    digest VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    prefix VARCHAR(8) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    points BIGINT NOT NULL,
    lot_days INTEGER,
    expires_at DATETIME(3),
    voided_at DATETIME(3),
    redeemed_by BIGINT,
    redeemed_at DATETIME(3),
    created_at DATETIME(3) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT ck_points_codes_points CHECK (points > 0 AND (lot_days IS NULL OR lot_days > 0)),
    CONSTRAINT ck_points_codes_redeemed CHECK ((redeemed_by IS NULL) = (redeemed_at IS NULL)),
    CONSTRAINT ck_points_codes_void CHECK (redeemed_by IS NULL OR voided_at IS NULL),
    CONSTRAINT uq_points_codes_digest UNIQUE (digest)
)CHARSET=utf8mb4 ENGINE=InnoDB;

CREATE INDEX ix_points_codes_batch ON points_codes (batch);

UPDATE alembic_version SET version_num='0014' WHERE alembic_version.version_num = '0013';

-- Running upgrade 0014 -> 0020

CREATE TABLE provider_state (
    provider VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    version INTEGER NOT NULL,
    refuses_jobs BOOL NOT NULL,
    refuses_looks BOOL NOT NULL,
    reason VARCHAR(255) NOT NULL,
    pause_seconds FLOAT NOT NULL,
    opened_at DATETIME(3),
    next_probe_at DATETIME(3),
    probe_until DATETIME(3),
    updated_at DATETIME(3) NOT NULL,
    PRIMARY KEY (provider)
)CHARSET=utf8mb4 ENGINE=InnoDB;

CREATE TABLE chores (
    name VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    version INTEGER NOT NULL,
    due_at DATETIME(3) NOT NULL,
    lease_until DATETIME(3),
    done_at DATETIME(3),
    result INTEGER,
    PRIMARY KEY (name)
)CHARSET=utf8mb4 ENGINE=InnoDB;

UPDATE alembic_version SET version_num='0020' WHERE alembic_version.version_num = '0014';

-- Running upgrade 0020 -> 0021

CREATE INDEX ix_tasks_changed ON tasks (user_id, updated_at);

UPDATE alembic_version SET version_num='0021' WHERE alembic_version.version_num = '0020';

-- Running upgrade 0021 -> 0022

ALTER TABLE tasks ADD COLUMN callback_url MEDIUMTEXT;

CREATE TABLE webhook_secrets (
    user_id BIGINT NOT NULL,
    secret VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    previous VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    previous_until DATETIME(3),
    created_at DATETIME(3) NOT NULL,
    PRIMARY KEY (user_id)
)CHARSET=utf8mb4 ENGINE=InnoDB;

CREATE TABLE webhook_endpoints (
    id BIGINT NOT NULL AUTO_INCREMENT,
    user_id BIGINT NOT NULL,
    url MEDIUMTEXT NOT NULL,
    events MEDIUMTEXT NOT NULL,
    secret VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    previous VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    previous_until DATETIME(3),
    failing_since DATETIME(3),
    failed_at DATETIME(3),
    disabled_at DATETIME(3),
    disabled_reason VARCHAR(16),
    created_at DATETIME(3) NOT NULL,
    updated_at DATETIME(3) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT ck_webhook_endpoints_disabled CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL))
)CHARSET=utf8mb4 ENGINE=InnoDB;

CREATE INDEX ix_webhook_endpoints_user_id ON webhook_endpoints (user_id);

CREATE TABLE webhook_deliveries (
    id BIGINT NOT NULL AUTO_INCREMENT,
    user_id BIGINT NOT NULL,
    task_id BIGINT NOT NULL,
    endpoint_id BIGINT NOT NULL,
    host VARCHAR(260) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    status VARCHAR(16) NOT NULL,
    version INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    next_run_at DATETIME(3),
    lease_until DATETIME(3),
    give_up_at DATETIME(3) NOT NULL,
    outcome VARCHAR(16),
    status_code INTEGER,
    duration_ms INTEGER,
    created_at DATETIME(3) NOT NULL,
    delivered_at DATETIME(3),
    PRIMARY KEY (id),
    CONSTRAINT ck_webhook_deliveries_status CHECK (status IN ('pending', 'delivered', 'failed')),
    CONSTRAINT ck_webhook_deliveries_ended CHECK ((status = 'pending') = (next_run_at IS NOT NULL) AND (status = 'delivered') = (delivered_at IS NOT NULL)),
    CONSTRAINT uq_webhook_deliveries_task_id_endpoint_id UNIQUE (task_id, endpoint_id)
)CHARSET=utf8mb4 ENGINE=InnoDB;

CREATE INDEX ix_webhook_deliveries_due ON webhook_deliveries (next_run_at, host, user_id);

CREATE INDEX ix_webhook_deliveries_newest ON webhook_deliveries (user_id, id);

UPDATE alembic_version SET version_num='0022' WHERE alembic_version.version_num = '0021';

-- Running upgrade 0022 -> 0023

CREATE TABLE model_durations (
    model_name VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    usual_seconds FLOAT NOT NULL,
    samples INTEGER NOT NULL,
    updated_at DATETIME(3) NOT NULL,
    PRIMARY KEY (model_name)
)CHARSET=utf8mb4 ENGINE=InnoDB;

UPDATE alembic_version SET version_num='0023' WHERE alembic_version.version_num = '0022';

