/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_recover.c - what is found again in the NVMe log's file, after the process was killed, after the power
 * was cut (a model of the device drops and tears what was not flushed), after bits were flipped: all that was
 * durable, nothing that was forgotten, and never a wrong byte.
 *
 * test_nvme_recover [--seconds N]: round after round, each with a seed of its own, printed with its counts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/nvme_recover.h"
#include "daemon/nvme_state.h" /* for a deadline that changes */
#include "tests/lib/log_rig.h"
#include "tests/lib/power_file.h"
#include "tests/lib/rng.h"

#define KEYS 256u /* a key is its block's id */
#define OPS 12u
#define RECORD_MAX LOG_RIG_RECORD_BYTES
#define TICK_NS (200 * MS)

struct saved { /* in a checkpoint's piece */
	uint32_t key, version;
	struct nvme_place place;
};

struct key_state {
	uint32_t version; /* of the newest record */
	uint8_t writing, held, forgotten;
	uint64_t done_at; /* event of the power model */
};

struct op {
	struct nvme_op op; /* first */
	struct world *w;
	uint8_t *buf;
	uint32_t key, version;
	uint8_t busy;
};

struct world {
	struct log_rig rig;
	struct rng rng;
	struct power_file power;
	struct key_state key[KEYS];
	struct op ops[OPS];
	uint32_t version;
	uint64_t now_ns;
	uint32_t checkpoint_rate; /* of 1000 steps */
	uint32_t cursor;	  /* of the checkpoint under way */
	uint32_t keep_of_8;	  /* of the keys, so many are worth a copy */
	unsigned checkpoints, found, from_records, forgotten, refused, read_refused;
};

static unsigned long total_lost, total_appended, total_found, total_refused, total_flips,
	total_cuts, total_kills, total_blobs, total_copied;

/* ---- records ---- */

static void fill(struct record_header *expect, uint32_t key, uint32_t version)
{
	memset(expect, 0, sizeof(*expect));
	expect->magic = RECORD_MAGIC;
	expect->version = RECORD_VERSION;
	expect->header_bytes = sizeof(*expect);
	memcpy(expect->key, &key, sizeof(key));
	expect->key_len = 32;
	expect->raw_xxh3 = version;
	expect->raw_bytes = 4096;
	expect->payload_bytes = 100 + (uint32_t)(rng_mix(version) % (RECORD_MAX - 4096));
}

static uint64_t word(uint32_t key, uint32_t version, uint32_t i)
{
	return rng_mix((uint64_t)version << 32 ^ (uint64_t)key << 20 ^ i);
}

/* Its bytes, padded. */
static uint32_t make_record(uint8_t *buf, uint32_t key, uint32_t version, uint64_t log_id,
			    uint64_t sequence)
{
	struct record_header *h = (struct record_header *)(void *)buf;
	uint64_t *words = (uint64_t *)(void *)(buf + sizeof(*h));

	memset(buf, 0, RECORD_MAX);
	fill(h, key, version);
	h->log_id = log_id;
	h->sequence = sequence;
	for (uint32_t i = 0; i < h->payload_bytes / 8; i++)
		words[i] = word(key, version, i);
	record_seal(h);
	return ((uint32_t)record_bytes(h) + LOG_RIG_ALIGN - 1) & ~(LOG_RIG_ALIGN - 1);
}

static int is_record(const uint8_t *buf, uint32_t key, uint32_t version)
{
	const struct record_header *h = (const struct record_header *)(const void *)buf;
	const uint64_t *words = (const uint64_t *)(const void *)(buf + sizeof(*h));

	for (uint32_t i = 0; i < h->payload_bytes / 8; i++)
		if (words[i] != word(key, version, i))
			return 0;
	return 1;
}

/* ---- a life of the log ---- */

static void on_evict(void *user, uint32_t key)
{
	struct world *w = user;

	assert_true(w->key[key].held && !w->key[key].writing);
	w->key[key].held = 0;
}

static int on_keeps(void *user, uint32_t key)
{
	const struct world *w = user;

	assert_true(w->key[key].held);
	return rng_mix(key) % 8 < w->keep_of_8;
}

static void on_moved(void *user, uint32_t key)
{
	const struct world *w = user;

	assert_true(w->key[key].held && nvme_log_holds(w->rig.log, key));
	total_copied++;
}

static void on_done(struct nvme_op *nop, int res)
{
	struct op *op = (struct op *)nop;
	struct world *w = op->w;
	struct key_state *k = &w->key[op->key];

	op->busy = 0;
	if (!nop->is_write)
		return;
	if (k->version != op->version || !k->writing)
		return; /* forgotten meanwhile */
	k->writing = 0;
	k->held = res == 0;
	k->done_at = w->power.now;
}

static void turn(struct world *w)
{
	w->now_ns += TICK_NS;
	log_rig_turn(&w->rig, rng_one_in(&w->rng, 3) ? MS : 0);
	nvme_log_tick(w->rig.log, w->now_ns);
}

static void quiesce(struct world *w)
{
	for (unsigned quiet = 0; quiet < 12; quiet++) {
		turn(w);
		if (nvme_log_inflight(w->rig.log)) {
			log_rig_turn(&w->rig, 5 * MS);
			quiet = 0;
		}
	}
}

static void start_append(struct world *w)
{
	uint32_t key = rng_below(&w->rng, KEYS);
	struct op *op = &w->ops[rng_below(&w->rng, OPS)];
	uint64_t sequence;
	uint32_t bytes;

	if (op->busy || w->key[key].held || w->key[key].writing)
		return;
	op->key = key;
	op->version = ++w->version;
	op->op.done = on_done;
	bytes = make_record(op->buf, key, op->version, 0, 0);
	if (nvme_log_room(w->rig.log, bytes, &sequence) < 0)
		return;
	(void)make_record(op->buf, key, op->version, nvme_log_id(w->rig.log), sequence);
	if (nvme_log_append(w->rig.log, &op->op, key, 0, op->buf, bytes) < 0)
		return;
	op->busy = 1;
	total_appended++;
	w->key[key] = (struct key_state){ .version = op->version, .writing = 1 };
}

static void forget(struct world *w, uint32_t key)
{
	nvme_log_forget(w->rig.log, key);
	w->key[key].forgotten = w->key[key].held || w->key[key].writing;
	w->key[key].held = w->key[key].writing = 0;
}

static uint32_t next_piece(void *user, uint8_t *buf, uint32_t cap)
{
	struct world *w = user;
	uint32_t n = 0;

	while (w->cursor < KEYS && (n + 1) * sizeof(struct saved) <= cap && n < 20) {
		struct saved s = { .key = w->cursor, .version = w->key[w->cursor].version };

		if (nvme_log_place(w->rig.log, w->cursor++, &s.place) == 0)
			memcpy(buf + n++ * sizeof(s), &s, sizeof(s));
	}
	/* Never empty before the end. */
	if (!n && w->cursor < KEYS)
		return next_piece(user, buf, cap);
	return n * (uint32_t)sizeof(struct saved);
}

static void piece_done(void *user, int res)
{
	struct world *w = user;

	w->checkpoints += res == 0;
}

static void start_checkpoint(struct world *w)
{
	const struct nvme_blob_source source = { .next = next_piece,
						 .done = piece_done,
						 .user = w };

	if (nvme_log_blob_start(w->rig.log, NVME_BLOB_CHECKPOINT, &source) == 0)
		w->cursor = 0;
}

static void live(struct world *w, unsigned steps)
{
	for (unsigned i = 0; i < steps; i++) {
		uint32_t what = rng_below(&w->rng, 1000);

		/* As the daemon does: without, lists may have to go before their time. */
		if (nvme_log_tail_bytes(w->rig.log) > w->rig.options.bytes / 2)
			start_checkpoint(w);
		if (what < 500)
			start_append(w);
		else if (what < 560)
			forget(w, rng_below(&w->rng, KEYS));
		else if (what < 560 + w->checkpoint_rate)
			start_checkpoint(w);
		else if (what < 575 && what >= 572)
			for (uint32_t key = rng_below(&w->rng, KEYS), n = 0; n < KEYS / 2; n++) {
				forget(w, (key + n) % KEYS);
				if (n % 8 == 0) /* more lists, so that some lie alone */
					turn(w);
			}
		else
			turn(w);
	}
}

/* ---- the next one ---- */

static void on_piece(void *user, enum nvme_blob kind, const uint8_t *bytes, uint32_t count)
{
	struct world *w = user;
	struct saved s;

	assert_int_equal(kind, NVME_BLOB_CHECKPOINT);
	assert_int_equal(count % sizeof(s), 0);
	for (uint32_t i = 0; i < count; i += sizeof(s)) {
		memcpy(&s, bytes + i, sizeof(s));
		assert_true(s.key < KEYS);
		if (nvme_log_restore(w->rig.log, s.key, &s.place) < 0)
			continue;
		w->key[s.key] = (struct key_state){ .version = s.version, .held = 1 };
	}
}

static int on_record(void *user, const struct record_header *h, const struct nvme_place *place)
{
	struct nvme_place is;
	struct world *w = user;
	uint32_t key;

	memcpy(&key, h->key, sizeof(key));
	assert_true(key < KEYS);
	if (nvme_log_place(w->rig.log, key, &is) == 0) {
		if (is.sequence == place->sequence && is.off_sectors == place->off_sectors)
			return 0;
		if (is.sequence > place->sequence)
			return 0;
		nvme_log_forget(w->rig.log, key);
	}
	assert_int_equal(nvme_log_restore(w->rig.log, key, place), 0);
	w->key[key] = (struct key_state){ .version = (uint32_t)h->raw_xxh3, .held = 1 };
	w->from_records++;
	return 0;
}

static void on_forgotten(void *user, uint32_t key)
{
	struct world *w = user;

	assert_true(w->key[key].held);
	w->key[key].held = 0;
	w->forgotten++;
}

static void open_world(struct world *w)
{
	log_rig_ring(&w->rig);
	w->rig.options.evict = on_evict;
	w->rig.options.keeps = on_keeps;
	w->rig.options.moved = on_moved;
	w->rig.options.copy_percent = 60;
	w->rig.options.user = w;
	if (log_rig_open(&w->rig) < 0)
		fail_msg("%s", w->rig.err);
	power_file_begin(&w->power, w->rig.path, w->rig.options.bytes, w->rig.u);
}

static void make_world(struct world *w, uint64_t seed)
{
	memset(w, 0, sizeof(*w));
	rng_init(&w->rng, seed);
	log_rig_dir(&w->rig);
	w->rig.options.keep = 1;
	w->rig.options.bytes = 6 * MIB;
	w->rig.options.segment_bytes = rng_one_in(&w->rng, 2) ? MIB / 4 : MIB / 2;
	w->checkpoint_rate = rng_below(&w->rng, 10);
	w->keep_of_8 = rng_below(&w->rng, 8);
	w->now_ns = clock_now_ns();
	for (unsigned i = 0; i < OPS; i++) {
		w->ops[i].buf = w->rig.ops[i].buf;
		w->ops[i].w = w;
	}
	open_world(w);
}

static void end_world(struct world *w)
{
	power_file_end(&w->power);
	log_rig_teardown(&w->rig);
}

static void die(struct world *w)
{
	/* The ring wants its operations back; what they do from here on is overwritten by the cut. */
	uring_set_tap(w->rig.u, NULL, NULL);
	log_rig_drain(&w->rig);
	w->rig.log = nvme_log_close(w->rig.log);
	w->rig.u = uring_free(w->rig.u);
}

static void recover(struct world *w)
{
	const struct nvme_recover_ops ops = {
		.piece = on_piece, .record = on_record, .forgotten = on_forgotten, .user = w
	};
	struct nvme_recovered found;

	memset(w->key, 0, sizeof(w->key));
	assert_int_equal(nvme_log_recover(w->rig.log, &ops, &found), 0);
	w->refused += (unsigned)found.records_refused;
	total_refused += found.records_refused + found.pieces_damaged;
}

/* Read all that is held: exact, or refused.  `all`: nothing may be refused. */
static void read_all(struct world *w, int all)
{
	for (uint32_t key = 0; key < KEYS; key++) {
		struct op *op = &w->ops[0];
		struct record_header expect;
		struct nvme_place place;
		int r;

		if (!w->key[key].held) {
			assert_false(nvme_log_holds(w->rig.log, key));
			continue;
		}
		fill(&expect, key, w->key[key].version);
		assert_int_equal(nvme_log_place(w->rig.log, key, &place), 0);
		expect.sequence = place.sequence;
		expect.log_id = nvme_log_id(w->rig.log);
		op->op.done = on_done;
		op->busy = 1;
		assert_int_equal(nvme_log_read(w->rig.log, &op->op, key, 0, op->buf), 0);
		while (op->busy)
			log_rig_turn(&w->rig, MS);
		r = record_check(op->buf, nvme_log_record_bytes(w->rig.log, key), &expect);
		if (r == 0)
			assert_true(is_record(op->buf, key, w->key[key].version));
		else
			assert_false(all);
		if (r < 0) {
			w->read_refused++;
			nvme_log_forget(w->rig.log, key);
			w->key[key].held = 0;
		} else {
			w->found++;
			total_found++;
		}
	}
}

/* ---- tests ---- */

/* What was held is held, what was not is not. */
static void killed(struct world *w)
{
	struct key_state before[KEYS];

	if (rng_one_in(&w->rng, 2))
		quiesce(w);
	else /* notes of what was forgotten; what is being written may be or not */
		for (unsigned i = 0; i < 50 || (nvme_log_notes(w->rig.log) && i < 20000); i++) {
			log_rig_turn(&w->rig, MS);
			nvme_log_tick(w->rig.log, w->now_ns);
		}
	uring_set_tap(w->rig.u, NULL, NULL);
	log_rig_drain(&w->rig);
	memcpy(before, w->key, sizeof(before));
	die(w);
	power_file_end(&w->power);
	open_world(w);
	recover(w);
	for (uint32_t key = 0; key < KEYS; key++) {
		if (before[key].held &&
		    (!w->key[key].held || w->key[key].version != before[key].version))
			fail_msg("key %u, version %u: not found after a kill", key,
				 before[key].version);
		/* Evicted ones may come back; those that were forgotten on purpose must not, unless it was said
		 * that the log had to go on without the notes. */
		if (before[key].forgotten && w->key[key].held &&
		    !stats_get(w->rig.stats, STAT_NVME_NOTES_LOST))
			fail_msg("key %u: forgotten, and found again", key);
	}
	read_all(w, 1);
	total_kills++;
}

static void power_cut(struct world *w)
{
	struct key_state before[KEYS];
	uint64_t synced_to;

	if (rng_one_in(&w->rng, 2)) { /* somewhere in a checkpoint */
		start_checkpoint(w);
		for (uint32_t n = rng_below(&w->rng, 40); n > 0; n--)
			turn(w);
	}
	memcpy(before, w->key, sizeof(before));
	synced_to = w->power.synced_to;
	die(w);
	power_file_cut(&w->power, w->rig.path, &w->rng, 1 + rng_below(&w->rng, 4));
	power_file_end(&w->power);
	open_world(w);
	recover(w);
	read_all(w, 0);
	for (uint32_t key = 0; key < KEYS; key++)
		if (before[key].held && before[key].done_at && before[key].done_at <= synced_to &&
		    (!w->key[key].held || w->key[key].version != before[key].version))
			fail_msg("key %u, version %u: flushed, and not found after a power cut",
				 key, before[key].version);
	total_cuts++;
}

static void flip_bits(struct world *w, unsigned flips)
{
	int fd = open(w->rig.path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	for (unsigned i = 0; i < flips; i++) {
		/* Where something is: the beginning of segments more often than not. */
		off_t at = (off_t)rng_below(&w->rng, (uint32_t)w->rig.options.bytes);
		uint8_t byte;

		if (rng_one_in(&w->rng, 8))
			at = at / (off_t)w->rig.options.segment_bytes *
				     (off_t)w->rig.options.segment_bytes +
			     rng_below(&w->rng, 4096);
		assert_int_equal(pread(fd, &byte, 1, at), 1);
		byte ^= (uint8_t)(1u << rng_below(&w->rng, 8));
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	(void)close(fd);
	total_flips += flips;
}

/* Exact or refused, whatever bits are flipped; and the log goes on. */
static void flipped(struct world *w)
{
	quiesce(w);
	die(w);
	power_file_end(&w->power);
	flip_bits(w, 1 + rng_below(&w->rng, 200));
	log_rig_ring(&w->rig);
	if (log_rig_open(&w->rig) == -EEXIST) { /* both copies of the superblock */
		assert_non_null(strstr(w->rig.err, "remove the file"));
		(void)unlink(w->rig.path);
		assert_int_equal(log_rig_open(&w->rig), 0);
	}
	power_file_begin(&w->power, w->rig.path, w->rig.options.bytes, w->rig.u);
	recover(w);
	read_all(w, 0);
}

static void a_round(uint64_t seed)
{
	static void (*const ends[])(struct world *) = { killed, power_cut, flipped };
	struct world *w = malloc(sizeof(*w));

	assert_non_null(w);
	make_world(w, seed);
	for (unsigned life = 0; life < 6; life++) {
		live(w, 200 + rng_below(&w->rng, 1500));
		ends[rng_below(&w->rng, 3)](w);
	}
	total_blobs += w->checkpoints;
	total_lost += stats_get(w->rig.stats, STAT_NVME_NOTES_LOST) != 0;
	uring_set_tap(w->rig.u, NULL, NULL);
	log_rig_drain(&w->rig);
	end_world(w);
	free(w);
}

static void print_totals(void)
{
	print_message(
		"%lu records appended, %lu found and exact, %lu refused; %lu kills, %lu power "
		"cuts, %lu bits flipped, %lu checkpoints, %lu rounds that lost notes, %lu copies\n",
		total_appended, total_found, total_refused, total_kills, total_cuts, total_flips,
		total_blobs, total_lost, total_copied);
}

#ifdef SKVCD_SAN
#define ROUNDS 6u
#else
#define ROUNDS 30u
#endif

static void random_lives(void **state)
{
	uint64_t seed = rng_seed_env(0x7265636f);

	(void)state;
	for (unsigned i = 0; i < ROUNDS; i++)
		a_round(seed + i);
	print_totals();
	assert_true(total_found > 0 && total_blobs > 0 && total_copied > 0);
}

/* What was not there when it was made is not there now. */
static void a_new_file_holds_nothing(void **state)
{
	struct world *w = malloc(sizeof(*w));

	(void)state;
	assert_non_null(w);
	make_world(w, 1);
	recover(w);
	read_all(w, 1);
	assert_int_equal(w->found, 0);
	end_world(w);
	free(w);
}

/* ---- a sector that can't be read ---- */

static off_t bad_at; /* 0: there is none */
static unsigned bad_reads;

/* In the C library's place. */
ssize_t pread(int fd, void *buf, size_t bytes, off_t off)
{
	if (bad_at && off <= bad_at && bad_at < off + (off_t)bytes) {
		bad_reads++;
		errno = EIO;
		return -1;
	}
	return syscall(SYS_pread64, fd, buf, bytes, off);
}

/* A held key whose record others lie before and behind, in one segment; where its second block lies. */
static uint32_t in_the_middle(const struct world *w, off_t *ret_at)
{
	struct nvme_place place;

	for (uint32_t key = 0; key < KEYS; key++) {
		if (nvme_log_place(w->rig.log, key, &place) < 0 || place.sectors < 16 ||
		    place.off_sectors < 128 || nvme_log_after(w->rig.log, key) == NVME_LOG_NONE)
			continue;
		*ret_at = (off_t)(place.segment * w->rig.options.segment_bytes +
				  place.off_sectors * 512ull + LOG_RIG_ALIGN);
		return key;
	}
	fail_msg("no record lies between others");
	return 0;
}

static void a_bad_sector_costs_the_record_it_is_in(void **state)
{
	struct world *w = malloc(sizeof(*w));
	struct key_state before[KEYS];
	uint32_t lost;
	off_t at = 0;

	(void)state;
	assert_non_null(w);
	make_world(w, 3);
	for (unsigned i = 0; i < 100; i++) {
		start_append(w);
		turn(w);
	}
	quiesce(w);
	lost = in_the_middle(w, &at);
	memcpy(before, w->key, sizeof(before));
	die(w);
	power_file_end(&w->power);
	open_world(w);
	bad_at = at;
	recover(w);
	bad_at = 0;
	for (uint32_t key = 0; key < KEYS; key++)
		if (w->key[key].held != (before[key].held && key != lost))
			fail_msg("key %u: %s", key, w->key[key].held ? "found" : "not found");
	read_all(w, 1);
	print_message("%u reads failed\n", bad_reads);
	assert_in_range(bad_reads, 1, 3);
	end_world(w);
	free(w);
}

/* ---- a list that nobody would find ---- */

/* The next record begins a segment; nothing of that is written yet. */
static uint32_t append_to_new_segment(struct world *w)
{
	struct op *op = &w->ops[0];
	uint32_t key = 0, bytes;
	uint64_t sequence;

	while (w->key[key].held)
		key++;
	op->key = key;
	op->op.done = on_done;
	do {
		op->version = ++w->version;
		bytes = make_record(op->buf, key, op->version, 0, 0);
	} while (nvme_log_fits(w->rig.log, bytes));
	assert_int_equal(nvme_log_room(w->rig.log, bytes, &sequence), 0);
	(void)make_record(op->buf, key, op->version, nvme_log_id(w->rig.log), sequence);
	assert_int_equal(nvme_log_append(w->rig.log, &op->op, key, 0, op->buf, bytes), 0);
	op->busy = 1;
	w->key[key] = (struct key_state){ .version = op->version, .writing = 1 };
	return key;
}

/* The header of the segment that a list of what was forgotten lies in can't be written: it is written elsewhere. */
static void a_list_in_a_segment_without_a_header_is_written_again(void **state)
{
	struct world *w = malloc(sizeof(*w));
	uint32_t old = 0;
	char fault[64];

	(void)state;
	assert_non_null(w);
	make_world(w, 4);
	while (nvme_log_fits(w->rig.log, RECORD_MAX) || !w->version) {
		start_append(w);
		turn(w);
	}
	quiesce(w);
	while (!w->key[old].held)
		old++;
	(void)snprintf(fault, sizeof(fault), "write:eio:every=1:at=%llu",
		       (unsigned long long)w->rig.options.segment_bytes);
	log_rig_fault(&w->rig, fault);
	(void)append_to_new_segment(w);
	forget(w, old);
	nvme_log_tick(w->rig.log, w->now_ns);
	log_rig_drain(&w->rig);
	log_rig_fault(&w->rig, NULL);
	quiesce(w);
	assert_true(stats_get(w->rig.stats, STAT_NVME_ERRORS) > 0);
	assert_int_equal(nvme_log_notes(w->rig.log), 0);
	die(w);
	power_file_end(&w->power);
	open_world(w);
	recover(w);
	assert_false(w->key[old].held);
	end_world(w);
	free(w);
}

/* ---- a write that was too late, and is there all the same ---- */

static void set_deadline(struct world *w, uint64_t ns)
{
	w->rig.log->options.deadline_ns = ns;
}

static void a_block_whose_write_came_too_late_stays_forgotten(void **state)
{
	struct world *w = malloc(sizeof(*w));
	uint32_t key;

	(void)state;
	assert_non_null(w);
	make_world(w, 5);
	set_deadline(w, 1);
	key = append_to_new_segment(w);
	assert_int_equal(uring_submit(w->rig.u), 0);
	usleep(50000); /* it is over by now, but nobody has looked */
	log_rig_drain(&w->rig);
	assert_false(w->key[key].held);
	set_deadline(w, w->rig.options.deadline_ns);
	forget(w, key);
	for (unsigned i = 0; !nvme_log_in_service(w->rig.log) && i < 60000; i++) {
		usleep(1000);
		w->now_ns = clock_now_ns();
		turn(w);
	}
	quiesce(w);
	die(w);
	power_file_end(&w->power);
	open_world(w);
	recover(w);
	assert_int_equal(w->from_records, w->forgotten);
	assert_false(w->key[key].held);
	print_message("its record was %s\n", w->from_records ? "there" : "not there");
	end_world(w);
	free(w);
}

static uint64_t run_seed, run_until_ns;

static void until_told(void **state)
{
	uint64_t i = 0;

	(void)state;
	for (; clock_now_ns() < run_until_ns; i++)
		a_round(run_seed + i);
	print_message("seed %llu, %llu rounds: ", (unsigned long long)run_seed,
		      (unsigned long long)i);
	print_totals();
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_file_holds_nothing),
		cmocka_unit_test(a_bad_sector_costs_the_record_it_is_in),
		cmocka_unit_test(a_list_in_a_segment_without_a_header_is_written_again),
		cmocka_unit_test(a_block_whose_write_came_too_late_stays_forgotten),
		cmocka_unit_test(random_lives),
	};
	const struct CMUnitTest long_test[] = { cmocka_unit_test(until_told) };

	if (argc == 3 && !strcmp(argv[1], "--seconds")) {
		run_seed = rng_seed_env(clock_now_ns());
		run_until_ns = clock_now_ns() + strtoull(argv[2], NULL, 0) * CLOCK_NS_PER_S;
		return cmocka_run_group_tests(long_test, NULL, NULL);
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
