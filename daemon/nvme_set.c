/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_set.c - see nvme_set.h.  Opening: all files are found and locked; then it is decided what they are; then each
 * is claimed, which is the first write; then the logs are made.
 */
#include "daemon/nvme_set.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "daemon/log.h"
#include "daemon/nvme_file.h"

#define NUMBERS_MAX 64u

struct nvme_set {
	struct nvme_log *log[NVME_SET_MAX]; /* owned */
	uint64_t segments[NVME_SET_MAX];    /* that it has */
	uint64_t given[NVME_SET_MAX];	    /* records' segments that were begun in it */
	unsigned count, current;
	uint64_t sequence; /* of all their segments */
	uint32_t align_bytes;
	uint8_t *of; /* owned mapping, [blocks_max]: which log a block is in, if any */
	uint32_t blocks_max;
};

/* ---- opening: what the files are ---- */

struct found {
	struct nvme_file file; /* fd < 0: not there */
	struct nvme_file_options options;
	struct nvme_member claim;
	bool forget;
};

struct opening {
	struct found found[NVME_SET_MAX];
	unsigned count;
	const struct found
		*leader; /* of the last opening; NULL: all are blank, or nothing is kept */
	char *err;
	unsigned err_bytes;
};

static bool is_member(const struct found *f)
{
	return f->file.fd >= 0 && f->file.member.epoch && f->options.keep;
}

static int refuse(struct opening *o, const struct found *f, const char *why, const struct found *g)
{
	(void)snprintf(
		o->err, o->err_bytes,
		"NVMe log %s: %s %s: name the files that belong together, or remove this one "
		"to begin anew",
		f->options.path, why, g->options.path);
	return -EEXIST;
}

/* A device that is gone or broken, beside others that are not. */
static bool is_gone(int error)
{
	return error == -EIO || error == -ENXIO || error == -ENODEV || error == -ENOMEDIUM;
}

static int find_all(const struct nvme_set_options *options, struct opening *o)
{
	unsigned there = 0;
	int r = 0;

	for (unsigned i = 0; i < o->count; i++) {
		struct found *f = &o->found[i];

		f->options = (struct nvme_file_options){
			.path = options->device[i].path,
			.bytes = options->device[i].bytes,
			.segment_bytes = options->log.segment_bytes,
			.allow_buffered = options->log.allow_buffered,
			.keep = options->log.keep,
		};
		r = nvme_file_find(&f->options, &f->file, o->err, o->err_bytes);
		if (r == 0) {
			there++;
			continue;
		}
		f->file.fd = -1;
		if (o->count == 1 || !is_gone(r))
			return r;
		log_line(LOG_LEVEL_WARNING, "%s: its blocks are misses", o->err);
	}
	return there ? 0 : r;
}

/* Is there a member of this number, or was there one? */
static bool is_taken(const struct opening *o, uint32_t number)
{
	for (unsigned i = 0; i < o->count; i++)
		if (o->found[i].file.fd >= 0 && o->found[i].claim.count &&
		    o->found[i].claim.number == number)
			return true;
	return o->leader && number < o->leader->file.member.count;
}

/* One set, each member once. */
static int check_members(struct opening *o)
{
	for (unsigned i = 0; i < o->count; i++) {
		const struct found *f = &o->found[i];

		if (is_member(f) &&
		    (!o->leader || f->file.member.epoch > o->leader->file.member.epoch))
			o->leader = f;
	}
	for (unsigned i = 0; i < o->count; i++) {
		const struct found *f = &o->found[i];

		if (!is_member(f))
			continue;
		if (memcmp(f->file.member.set, o->leader->file.member.set, 16) != 0)
			return refuse(o, f, "belongs to another set than", o->leader);
		for (unsigned k = 0; k < i; k++)
			if (is_member(&o->found[k]) &&
			    o->found[k].file.member.number == f->file.member.number)
				return refuse(o, f, "is the same member of its set as",
					      &o->found[k]);
	}
	return 0;
}

/* It was not there at an opening of the others, and so does not know what was forgotten. */
static bool is_stale(const struct found *f, const struct found *leader)
{
	const struct nvme_member *m = &f->file.member, *l = &leader->file.member;

	if (m->epoch == l->epoch)
		return false;
	/* That opening was cut short before this one was claimed: nothing had been written yet. */
	return m->epoch + 1 != l->epoch || !(l->present >> m->number & 1);
}

static void say_missing(const struct opening *o, uint64_t present)
{
	uint64_t missing = o->leader ? o->leader->file.member.present & ~present : 0;

	if (missing)
		log_line(
			LOG_LEVEL_WARNING,
			"NVMe: %d of the %u files that were used together are not here: their blocks "
			"are misses, and they begin anew when they come back",
			__builtin_popcountll(missing), o->leader->file.member.count);
}

static int number_all(struct opening *o)
{
	uint32_t next = 0, count = o->leader ? o->leader->file.member.count : 0;
	uint64_t present = 0, epoch = 1;
	uint8_t set[16];

	if (getrandom(set, sizeof(set), 0) != (ssize_t)sizeof(set)) {
		(void)snprintf(o->err, o->err_bytes, "NVMe log: no random numbers to be had");
		return -EIO;
	}
	if (o->leader)
		memcpy(set, o->leader->file.member.set, sizeof(set));
	for (unsigned i = 0; i < o->count; i++) {
		struct found *f = &o->found[i];

		if (f->file.fd < 0)
			continue;
		if (is_member(f)) {
			f->claim.number = f->file.member.number;
			f->forget = is_stale(f, o->leader);
		} else {
			while (is_taken(o, next) && next < NUMBERS_MAX)
				next++;
			f->claim.number = next;
		}
		if (f->claim.number >= NUMBERS_MAX)
			return refuse(o, f, "would be one too many in the set of", o->leader);
		f->claim.count = NUMBERS_MAX; /* taken */
		count = f->claim.number + 1 > count ? f->claim.number + 1 : count;
		present |= 1ull << f->claim.number;
		if (f->file.member.epoch >= epoch)
			epoch = f->file.member.epoch + 1;
		if (f->forget)
			log_line(LOG_LEVEL_WARNING,
				 "NVMe log %s: was away while the others were used: begins anew",
				 f->options.path);
	}
	say_missing(o, present);
	for (unsigned i = 0; i < o->count; i++) {
		struct nvme_member *m = &o->found[i].claim;

		m->count = count;
		m->present = present;
		m->epoch = epoch;
		memcpy(m->set, set, sizeof(set));
	}
	return 0;
}

static int claim_all(struct opening *o)
{
	int r = 0;

	for (unsigned i = 0; i < o->count && r == 0; i++) {
		struct found *f = &o->found[i];

		if (f->file.fd >= 0)
			r = nvme_file_claim(&f->options, &f->file, &f->claim, f->forget, o->err,
					    o->err_bytes);
	}
	return r;
}

/* ---- opening: the logs ---- */

/* Where it cannot be had, that is said once, and I/O is as always. */
static void poll_all(const struct nvme_set_options *options, const struct opening *o,
		     struct uring *uring)
{
	const struct found *f = o->found;
	uint8_t *buf = aligned_alloc(NVME_FILE_ALIGN_BYTES_MAX, NVME_FILE_ALIGN_BYTES_MAX);
	int r = buf ? 0 : -ENOMEM;

	for (; r == 0 && f < o->found + o->count; f++)
		if (f->file.fd >= 0) {
			r = uring_try_iopoll(f->file.fd, buf, f->file.align_bytes);
			if (r < 0)
				break;
		}
	free(buf);
	if (r == 0)
		r = uring_add_iopoll(uring, options->sqpoll);
	if (r < 0)
		log_line(LOG_LEVEL_WARNING,
			 "[nvme] iopoll: %s cannot be polled: %s; it goes on without",
			 f < o->found + o->count ? f->options.path : "io_uring", strerror(-r));
}

static int make_logs(struct nvme_set *set, struct opening *o, const struct nvme_log_options *log,
		     struct uring *uring, struct stats *stats)
{
	struct nvme_log_options options = *log;

	options.sequence = &set->sequence;
	for (unsigned i = 0; i < o->count; i++) {
		struct found *f = &o->found[i];
		int r;

		if (f->file.fd < 0)
			continue;
		options.bytes = f->options.bytes;
		r = nvme_log_open_file(&options, &f->file, uring, stats, &set->log[set->count],
				       o->err, o->err_bytes);
		f->file.fd = -1;
		if (r < 0)
			return r;
		if (nvme_log_align_bytes(set->log[set->count]) > set->align_bytes)
			set->align_bytes = nvme_log_align_bytes(set->log[set->count]);
		set->segments[set->count++] = options.bytes / options.segment_bytes;
	}
	return 0;
}

static int check(const struct nvme_set_options *options)
{
	struct nvme_log_options o = options->log;
	int r = options->devices && options->devices <= NVME_SET_MAX ? 0 : -EINVAL;

	for (unsigned i = 0; r == 0 && i < options->devices; i++) {
		o.path = options->device[i].path;
		o.bytes = options->device[i].bytes;
		r = nvme_log_check(&o);
	}
	return r;
}

static int make_table(struct nvme_set *set, uint32_t blocks_max)
{
	void *p = mmap(NULL, blocks_max, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	set->of = p;
	set->blocks_max = blocks_max;
	return 0;
}

static int open_files(const struct nvme_set_options *options, struct opening *o)
{
	int r = find_all(options, o);

	if (r == 0)
		r = check_members(o);
	if (r == 0)
		r = number_all(o);
	return r < 0 ? r : claim_all(o);
}

int nvme_set_open(const struct nvme_set_options *options, struct uring *uring, struct stats *stats,
		  struct nvme_set **ret_set, char *err, unsigned err_bytes)
{
	struct opening o = { .count = options->devices, .err = err, .err_bytes = err_bytes };
	struct nvme_set *set = calloc(1, sizeof(*set));
	int r = check(options);

	for (unsigned i = 0; i < NVME_SET_MAX; i++)
		o.found[i].file.fd = -1;
	if (r < 0)
		(void)snprintf(err, err_bytes, "NVMe log: sizes do not fit together");
	if (r == 0 && (!set || make_table(set, options->log.blocks_max) < 0)) {
		(void)snprintf(err, err_bytes, "NVMe log: out of memory");
		r = -ENOMEM;
	}
	if (r == 0)
		r = open_files(options, &o);
	if (r == 0 && options->iopoll)
		poll_all(options, &o, uring);
	if (r == 0)
		r = make_logs(set, &o, &options->log, uring, stats);
	if (r == 0) {
		*ret_set = set;
		return 0;
	}
	for (unsigned i = 0; i < o.count; i++)
		nvme_file_give_up(&o.found[i].options, &o.found[i].file);
	(void)nvme_set_close(set);
	return r;
}

struct nvme_set *nvme_set_close(struct nvme_set *set)
{
	if (!set)
		return NULL;
	for (unsigned i = 0; i < set->count; i++)
		(void)nvme_log_close(set->log[i]);
	if (set->of)
		(void)munmap(set->of, set->blocks_max);
	free(set);
	return NULL;
}

unsigned nvme_set_logs(const struct nvme_set *set)
{
	return set->count;
}

struct nvme_log *nvme_set_log(const struct nvme_set *set, unsigned i)
{
	assert(i < set->count);
	return set->log[i];
}

uint32_t nvme_set_align_bytes(const struct nvme_set *set)
{
	return set->align_bytes;
}

uint32_t nvme_set_record_bytes_max(const struct nvme_set *set)
{
	uint32_t least = UINT32_MAX;

	for (unsigned i = 0; i < set->count; i++)
		if (nvme_log_record_bytes_max(set->log[i]) < least)
			least = nvme_log_record_bytes_max(set->log[i]);
	return least;
}

/* ---- records ---- */

/* The one in service that has had the fewest of its share. */
static unsigned next_log(const struct nvme_set *set)
{
	unsigned best = set->count;

	for (unsigned i = 0; i < set->count; i++)
		if (nvme_log_in_service(set->log[i]) &&
		    (best == set->count ||
		     set->given[i] * set->segments[best] < set->given[best] * set->segments[i]))
			best = i;
	return best;
}

/* The log that the next record goes to: -EIO when none serves. */
static int choose(struct nvme_set *set, uint32_t bytes)
{
	if (nvme_log_in_service(set->log[set->current]) &&
	    nvme_log_fits(set->log[set->current], bytes))
		return 0;
	if (next_log(set) == set->count)
		return -EIO;
	set->current = next_log(set);
	set->given[set->current]++;
	return 0;
}

int nvme_set_room(struct nvme_set *set, uint32_t bytes, uint64_t *ret_log_id,
		  uint64_t *ret_sequence)
{
	int r = choose(set, bytes);

	if (r < 0)
		return r;
	r = nvme_log_room(set->log[set->current], bytes, ret_sequence);
	if (r == 0)
		*ret_log_id = nvme_log_id(set->log[set->current]);
	return r;
}

int nvme_set_append(struct nvme_set *set, struct nvme_op *op, uint32_t block, unsigned buf_index,
		    const void *buf, uint32_t bytes)
{
	int r;

	assert(block < set->blocks_max);
	if (nvme_log_has(set->log[set->of[block]], block))
		return -EEXIST;
	r = nvme_log_append(set->log[set->current], op, block, buf_index, buf, bytes);
	if (r == 0)
		set->of[block] = (uint8_t)set->current;
	return r;
}

struct nvme_log *nvme_set_log_of(const struct nvme_set *set, uint32_t block)
{
	assert(block < set->blocks_max);
	return set->log[set->of[block]];
}

int nvme_set_read(struct nvme_set *set, struct nvme_op *op, uint32_t block, unsigned buf_index,
		  void *buf)
{
	return nvme_log_read(nvme_set_log_of(set, block), op, block, buf_index, buf);
}

int nvme_set_read_joined(struct nvme_set *set, const struct nvme_read *reads, unsigned count)
{
	return nvme_log_read_joined(nvme_set_log_of(set, reads[0].block), reads, count);
}

uint32_t nvme_set_after(const struct nvme_set *set, uint32_t block)
{
	return nvme_log_after(nvme_set_log_of(set, block), block);
}

int nvme_set_place(const struct nvme_set *set, uint32_t block, struct nvme_place *ret)
{
	return nvme_log_place(nvme_set_log_of(set, block), block, ret);
}

void nvme_set_forget(struct nvme_set *set, uint32_t block)
{
	nvme_log_forget(nvme_set_log_of(set, block), block);
}

int nvme_set_restore(struct nvme_set *set, struct nvme_log *log, uint32_t block,
		     const struct nvme_place *place)
{
	unsigned i = 0;
	int r;

	while (set->log[i] != log)
		i++;
	assert(block < set->blocks_max && i < set->count);
	if (nvme_log_has(nvme_set_log_of(set, block), block))
		return -EEXIST;
	r = nvme_log_restore(log, block, place);
	if (r == 0)
		set->of[block] = (uint8_t)i;
	return r;
}

/* ---- all of them ---- */

unsigned nvme_set_in_service(const struct nvme_set *set)
{
	unsigned n = 0;

	for (unsigned i = 0; i < set->count; i++)
		n += nvme_log_in_service(set->log[i]) != 0;
	return n;
}

void nvme_set_tick(struct nvme_set *set, uint64_t now_ns)
{
	for (unsigned i = 0; i < set->count; i++)
		nvme_log_tick(set->log[i], now_ns);
}

unsigned nvme_set_inflight(const struct nvme_set *set)
{
	unsigned n = 0;

	for (unsigned i = 0; i < set->count; i++)
		n += nvme_log_inflight(set->log[i]);
	return n;
}

/* Of those that can still be written. */
uint32_t nvme_set_notes(const struct nvme_set *set)
{
	uint32_t n = 0;

	for (unsigned i = 0; i < set->count; i++)
		n += nvme_log_in_service(set->log[i]) ? nvme_log_notes(set->log[i]) : 0;
	return n;
}

int nvme_set_blob_busy(const struct nvme_set *set)
{
	int busy = 0;

	for (unsigned i = 0; i < set->count; i++)
		busy |= nvme_log_blob_busy(set->log[i]);
	return busy;
}

void nvme_set_closing(struct nvme_set *set)
{
	for (unsigned i = 0; i < set->count; i++)
		nvme_log_closing(set->log[i]);
}
