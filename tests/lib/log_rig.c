/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log_rig.c - making and unmaking the log under test, and one operation at a time.
 */
#include "tests/lib/log_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/record.h"

static void on_evict(void *user, uint32_t block)
{
	struct log_rig *rig = user;
	struct log_rig_block *m = &rig->model[block];

	/* Not while it is being written, and not twice. */
	assert_true(m->held && !m->writing);
	assert_false(nvme_log_holds(rig->log, block));
	m->held = false;
	m->life++;
	rig->evicted++;
	if (rig->evict_forgets && rig->evict_forgets != block) {
		nvme_log_forget(rig->log, rig->evict_forgets);
		rig->model[rig->evict_forgets].held = false;
		rig->evict_forgets = 0;
	}
}

static void on_done(struct nvme_op *op, int res)
{
	struct log_rig_op *t = (struct log_rig_op *)op;

	assert_true(t->busy);
	t->busy = false;
	t->res = res;
	t->done++;
}

/* ---- setting up ---- */

void log_rig_dir(struct log_rig *rig)
{
	const char *base = getenv("TMPDIR");

	memset(rig, 0, sizeof(*rig));
	(void)snprintf(rig->dir, sizeof(rig->dir), "%.40s/skvcd-log-XXXXXX", base ? base : ".");
	assert_non_null(mkdtemp(rig->dir));
	(void)snprintf(rig->path, sizeof(rig->path), "%s/log", rig->dir);
	rig->options = (struct nvme_log_options){
		.path = rig->path,
		.bytes = 4 * MIB,
		.segment_bytes = MIB / 2,
		.queue_depth = LOG_RIG_DEPTH,
		.deadline_ns = 10000 * MS,
		.retry_ns = LOG_RIG_RETRY_NS,
		.blocks_max = LOG_RIG_BLOCKS,
		.evict = on_evict,
		.user = rig,
	};
	rig->stats = calloc(1, sizeof(*rig->stats));
	rig->memory = aligned_alloc(LOG_RIG_ALIGN, LOG_RIG_OPS * LOG_RIG_RECORD_BYTES);
	for (unsigned i = 0; i < LOG_RIG_OPS; i++) {
		rig->ops[i].buf = rig->memory + i * LOG_RIG_RECORD_BYTES;
		rig->ops[i].op.done = on_done;
	}
}

void log_rig_ring(struct log_rig *rig)
{
	struct iovec iov = { rig->memory, LOG_RIG_OPS * LOG_RIG_RECORD_BYTES };
	int r = uring_new(LOG_RIG_DEPTH + 12, NULL, &rig->u);

	if (r == -EPERM || r == -ENOSYS || r == -ENOMEM) {
		print_message("%s\n", uring_hint(r));
		skip();
	}
	assert_int_equal(r, 0);
	assert_int_equal(uring_register_buffers(rig->u, &iov, 1), 0);
}

int log_rig_open(struct log_rig *rig)
{
	rig->err[0] = '\0';
	return nvme_log_open(&rig->options, rig->u, rig->stats, &rig->log, rig->err,
			     sizeof(rig->err));
}

void log_rig_close(struct log_rig *rig)
{
	rig->log = nvme_log_close(rig->log);
	rig->u = uring_free(rig->u);
	memset(rig->model, 0, sizeof(rig->model));
}

void log_rig_setup_retry(struct log_rig *rig, uint64_t retry_ns)
{
	int r;

	log_rig_dir(rig);
	rig->options.retry_ns = retry_ns;
	log_rig_ring(rig);
	r = log_rig_open(rig);
	if (r == -EOPNOTSUPP) {
		print_message("%s\n", rig->err);
		skip();
	}
	if (r < 0)
		fail_msg("%s", rig->err);
}

void log_rig_setup(struct log_rig *rig)
{
	log_rig_setup_retry(rig, LOG_RIG_RETRY_NS);
}

void log_rig_teardown(struct log_rig *rig)
{
	if (rig->log)
		log_rig_close(rig);
	rig->u = uring_free(rig->u);
	(void)unlink(rig->path);
	(void)rmdir(rig->dir);
	free(rig->memory);
	free(rig->stats);
}

void log_rig_turn(struct log_rig *rig, uint64_t wait_ns)
{
	assert_int_equal(uring_sleep(rig->u, wait_ns), 0);
	(void)uring_reap(rig->u, 32);
}

void log_rig_drain(struct log_rig *rig)
{
	const uint64_t until_ns = clock_now_ns() + 20000 * MS;

	while (nvme_log_inflight(rig->log) && clock_now_ns() < until_ns)
		log_rig_turn(rig, 100 * MS);
	assert_int_equal(nvme_log_inflight(rig->log), 0);
}

void log_rig_fault(struct log_rig *rig, const char *spec)
{
	assert_int_equal(uring_set_fault(rig->u, spec), 0);
}

/* ---- one operation at a time ---- */

static void content_fill(uint8_t *p, uint32_t bytes, uint32_t content)
{
	uint64_t *words = (uint64_t *)(void *)p;

	for (uint32_t i = 0; i < bytes / 8; i++)
		words[i] = (uint64_t)content << 32 | i;
}

bool log_rig_is(const uint8_t *p, uint32_t bytes, uint32_t content)
{
	const uint64_t *words = (const uint64_t *)(const void *)p;
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < bytes / 8; i++)
		wrong |= words[i] ^ ((uint64_t)content << 32 | i);
	return !wrong;
}

int log_rig_start_append(struct log_rig *rig, struct log_rig_op *t, uint32_t block, uint32_t bytes,
			 uint32_t content)
{
	int r;

	assert_false(t->busy);
	content_fill(t->buf, bytes, content);
	t->bytes = bytes;
	t->content = content;
	t->done = 0;
	r = nvme_log_append(rig->log, &t->op, block, 0, t->buf, bytes);
	t->busy = r == 0;
	assert_int_equal(t->done, 0);
	return r;
}

int log_rig_start_read(struct log_rig *rig, struct log_rig_op *t, uint32_t block)
{
	int r;

	assert_false(t->busy);
	memset(t->buf, 0, LOG_RIG_RECORD_BYTES);
	t->done = 0;
	r = nvme_log_read(rig->log, &t->op, block, 0, t->buf);
	t->busy = r == 0;
	assert_int_equal(t->done, 0);
	return r;
}

/* Start, wait, and what came of it. */
int log_rig_append(struct log_rig *rig, uint32_t block, uint32_t bytes, uint32_t content)
{
	int r = log_rig_start_append(rig, &rig->ops[0], block, bytes, content);

	if (r < 0)
		return r;
	log_rig_drain(rig);
	assert_int_equal(rig->ops[0].done, 1);
	if (rig->ops[0].res == 0)
		rig->model[block].held = true;
	return rig->ops[0].res;
}

int log_rig_read(struct log_rig *rig, uint32_t block)
{
	int r = log_rig_start_read(rig, &rig->ops[1], block);

	if (r < 0)
		return r;
	log_rig_drain(rig);
	assert_int_equal(rig->ops[1].done, 1);
	return rig->ops[1].res;
}

/* ---- records ---- */

void log_rig_make_record(uint8_t *buf, uint32_t bytes, uint32_t key, uint64_t log_id,
			 uint64_t sequence)
{
	struct record_header *h = (struct record_header *)(void *)buf;
	uint32_t *words = (uint32_t *)(void *)(buf + sizeof(*h));

	memset(h, 0, sizeof(*h));
	h->magic = RECORD_MAGIC;
	h->version = RECORD_VERSION;
	h->header_bytes = sizeof(*h);
	memcpy(h->key, &key, sizeof(key));
	h->key_len = 32;
	h->payload_bytes = bytes - (uint32_t)sizeof(*h);
	h->log_id = log_id;
	h->sequence = sequence;
	for (uint32_t i = 0; i < h->payload_bytes / 4; i++)
		words[i] = key << 16 | (i & 0xffff);
	record_seal(h);
}

bool log_rig_is_record(const uint8_t *buf, uint32_t bytes, uint32_t key)
{
	const struct record_header *h = (const struct record_header *)(const void *)buf;
	const uint32_t *words = (const uint32_t *)(const void *)(buf + sizeof(*h));
	uint32_t wrong = 0;

	if (record_check_whole(buf, bytes) < 0 || memcmp(h->key, &key, sizeof(key)) != 0)
		return false;
	for (uint32_t i = 0; i < h->payload_bytes / 4; i++)
		wrong |= words[i] ^ (key << 16 | (i & 0xffff));
	return !wrong;
}
