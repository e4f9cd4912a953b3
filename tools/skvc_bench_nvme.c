/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_nvme.c - `skvc-bench nvme`: records through the daemon's own log and ring, sealed and checked as the
 * daemon does it, next to what fio gets of the same file with blocks of the same size, as many at a time.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "daemon/nvme_log.h"
#include "daemon/record.h"
#include "daemon/uring.h"
#include "tools/output.h"
#include "tools/skvc_bench.h"

#define DEPTH_MAX 1024u
#define SEGMENT_BYTES (64ull << 20)
#define HUGE_BYTES (2ull << 20)
#define OUTPUT_BYTES (256u << 10) /* of fio */
#define LIST_SUFFIX ".reads"

struct options {
	const char *file;
	uint64_t bytes, block_bytes;
	uint32_t depth, rounds, chain;
	double seconds;
	bool small_pages, sqpoll, iopoll, json;
};

/* One direction, one round. */
struct rate {
	double bytes_per_second;
	double cores; /* of CPU time, for each second */
	double reads; /* for each record */
};

/* Also with fio: the first two.  Records that lie one behind the other: by themselves, and joined. */
enum way { WRITE, READ, CHAIN, JOINED, WAYS };
#define FIO_WAYS 2u

static const char *const way_names[WAYS] = { "write", "read", "chain", "joined" };

struct slot {
	struct nvme_op op; /* first */
	struct run *run;
	uint8_t *buf;
	bool busy;
};

struct run {
	const struct options *o;
	struct uring *uring;  /* owned */
	struct stats *stats;  /* owned */
	struct nvme_log *log; /* owned */
	uint8_t *memory;      /* owned */
	struct slot *slot;    /* owned, [depth] */
	uint32_t blocks, next;
	uint32_t *order, turn; /* owned, [blocks]: the one that is read next */
	uint64_t bytes;	       /* moved */
	uint64_t seed;
	int error;
};

static const char usage_text[] =
	"Usage: skvc-bench nvme --file FILE [OPTION]...\n"
	"\n"
	"  --file FILE      to write and read; made, and removed at the end: it may not be there\n"
	"  --size SIZE      of it (4G): a multiple of 64M, at least 512M\n"
	"  --block SIZE     of a record (1M): a multiple of 4K, at most 16M\n"
	"  --depth N        in flight (32)\n"
	"  --seconds S      of each measurement (5)\n"
	"  --rounds N       of write, read, and fio's (3); the middle one of each counts\n"
	"  --chain N        and read N records that lie one behind the other, each by itself and\n"
	"                   joined as the daemon does (0: no); at most 32 and --depth\n"
	"  --small-pages    memory without huge pages, as the daemon has it where `skvcctl doctor`\n"
	"                   says so\n"
	"  --sqpoll         as [nvme] sqpoll\n"
	"  --iopoll         as [nvme] iopoll\n"
	"  --json           one JSON object\n";

static double now(clockid_t clock)
{
	struct timespec t;

	(void)clock_gettime(clock, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the log ---- */

static void on_evict(void *user, uint32_t block)
{
	(void)user;
	(void)block;
}

static void on_done(struct nvme_op *op, int res)
{
	struct slot *s = (struct slot *)op;

	s->busy = false;
	if (res == 0 && !op->is_write)
		res = record_check_whole(s->buf, s->run->o->block_bytes);
	if (res < 0)
		s->run->error = res;
	else
		s->run->bytes += s->run->o->block_bytes;
}

static void fill(struct run *run, uint8_t *buf)
{
	struct record_header *h = (struct record_header *)(void *)buf;
	uint64_t *words = (uint64_t *)(void *)buf;

	for (uint64_t i = 0; i < run->o->block_bytes / 8; i++) {
		run->seed = run->seed * 6364136223846793005ull + 1442695040888963407ull;
		words[i] = run->seed;
	}
	memset(h, 0, sizeof(*h));
	h->magic = RECORD_MAGIC;
	h->version = RECORD_VERSION;
	h->header_bytes = sizeof(*h);
	h->key_len = 32;
	h->payload_bytes = (uint32_t)(run->o->block_bytes - record_payload_off(0));
}

static int start_write(struct run *run, struct slot *s)
{
	struct record_header *h = (struct record_header *)(void *)s->buf;
	uint32_t block = run->next;
	int r = nvme_log_room(run->log, (uint32_t)run->o->block_bytes, &h->sequence);

	if (r < 0)
		return r;
	nvme_log_forget(run->log, block);
	h->log_id = nvme_log_id(run->log);
	memcpy(h->key, &block, sizeof(block));
	record_seal(h);
	r = nvme_log_append(run->log, &s->op, block, 0, s->buf, (uint32_t)run->o->block_bytes);
	if (r == 0)
		run->next = (block + 1) % run->blocks;
	return r;
}

static uint32_t random_below(struct run *run, uint32_t n)
{
	run->seed = run->seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((run->seed >> 33) % n);
}

/* As fio has it: at random, but each once before any comes again. */
static int shuffle(struct run *run)
{
	run->order = calloc(run->blocks, sizeof(*run->order));
	if (!run->order)
		return -ENOMEM;
	for (uint32_t i = 0; i < run->blocks; i++) {
		uint32_t k = random_below(run, i + 1);

		run->order[i] = run->order[k];
		run->order[k] = i;
	}
	return 0;
}

static int start_read(struct run *run, struct slot *s)
{
	for (uint32_t n = 0; n < run->blocks; n++) {
		uint32_t block = run->order[run->turn++ % run->blocks];

		if (nvme_log_holds(run->log, block))
			return nvme_log_read(run->log, &s->op, block, 0, s->buf);
	}
	return -ENOENT;
}

/* Slots first..first+chain-1, with records from a random one on. */
static int start_chain(struct run *run, uint32_t first, bool joined)
{
	struct nvme_read reads[NVME_LOG_JOIN_MAX];
	uint32_t block = 0, n = 0;

	for (uint32_t tries = 0; n < run->o->chain && tries < run->blocks; tries++) {
		block = random_below(run, run->blocks);
		for (n = 0;
		     n < run->o->chain && block != NVME_LOG_NONE && nvme_log_holds(run->log, block);
		     n++, block = nvme_log_after(run->log, block))
			reads[n] = (struct nvme_read){ .op = &run->slot[first + n].op,
						       .block = block,
						       .buf = run->slot[first + n].buf };
	}
	if (n < run->o->chain)
		return -ENOENT;
	for (uint32_t i = 0; !joined && i < n; i++) {
		int r = nvme_log_read(run->log, reads[i].op, reads[i].block, 0, reads[i].buf);

		if (r < 0)
			return r;
		run->slot[first + i].busy = true;
	}
	return joined ? nvme_log_read_joined(run->log, reads, n) : 0;
}

static void start_chains(struct run *run, bool joined)
{
	const uint32_t chain = run->o->chain;

	for (uint32_t i = 0; i + chain <= run->o->depth && !run->error; i += chain) {
		uint32_t n = 0;

		while (n < chain && !run->slot[i + n].busy)
			n++;
		if (n < chain)
			continue;
		run->error = start_chain(run, i, joined);
		for (n = 0; n < chain; n++)
			run->slot[i + n].busy = !run->error;
	}
}

static void start_some(struct run *run, enum way way)
{
	if (way >= CHAIN) {
		start_chains(run, way == JOINED);
		return;
	}
	for (uint32_t i = 0; i < run->o->depth && !run->error; i++) {
		struct slot *s = &run->slot[i];
		int r;

		if (s->busy)
			continue;
		r = way == WRITE ? start_write(run, s) : start_read(run, s);
		s->busy = r == 0;
		if (r == -EAGAIN)
			return;
		if (r < 0)
			run->error = r;
	}
}

static int turn(struct run *run)
{
	int r = uring_sleep(run->uring, 1000000);

	(void)uring_reap(run->uring, run->o->depth);
	nvme_log_tick(run->log, (uint64_t)(now(CLOCK_MONOTONIC) * 1e9));
	return r < 0 ? r : run->error;
}

/* For so long, or for so many bytes. */
static int measure(struct run *run, enum way way, double seconds, uint64_t bytes, struct rate *ret)
{
	const double start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	const uint64_t reads = stats_get(run->stats, STAT_NVME_READS);
	double end = start;
	int r = 0;

	run->bytes = 0;
	while (r == 0 && (end - start < seconds || run->bytes < bytes)) {
		start_some(run, way);
		r = turn(run);
		end = now(CLOCK_MONOTONIC);
	}
	ret->bytes_per_second = (double)run->bytes / (end - start);
	ret->cores = (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / (end - start);
	ret->reads = (double)(stats_get(run->stats, STAT_NVME_READS) - reads) *
		     (double)run->o->block_bytes / (double)run->bytes;
	while (nvme_log_inflight(run->log))
		(void)turn(run);
	return r;
}

static int complain(const char *what, int r)
{
	(void)fprintf(stderr, "skvc-bench nvme: %s: %s\n", what, strerror(-r));
	return r;
}

static int make_ring(struct run *run)
{
	const struct options *o = run->o;
	int r = o->sqpoll && !o->iopoll ? uring_new_sqpoll(o->depth + 16, NULL, &run->uring)
					: uring_new(o->depth + 16, NULL, &run->uring);

	if (r < 0)
		return complain(uring_hint(r), r);
	if (o->iopoll)
		r = uring_add_iopoll(run->uring, o->sqpoll);
	return r < 0 ? complain("iopoll", r) : 0;
}

static int open_log(struct run *run)
{
	const struct options *o = run->o;
	const struct nvme_log_options options = {
		.path = o->file,
		.bytes = o->bytes,
		.segment_bytes = SEGMENT_BYTES,
		.queue_depth = o->depth,
		.deadline_ns = 60000000000ull,
		.retry_ns = 1000000000ull,
		.blocks_max = run->blocks,
		.keep = 1,
		.evict = on_evict,
	};
	const uint64_t memory_bytes = (o->depth * o->block_bytes + HUGE_BYTES - 1) &
				      ~(HUGE_BYTES - 1);
	struct iovec iov = { NULL, memory_bytes };
	char err[256];
	int r = make_ring(run);

	if (r < 0)
		return r;
	run->stats = calloc(1, sizeof(*run->stats));
	run->slot = calloc(o->depth, sizeof(*run->slot));
	run->memory = aligned_alloc(HUGE_BYTES, memory_bytes);
	if (!run->stats || !run->slot || !run->memory || shuffle(run) < 0)
		return complain("memory", -ENOMEM);
	(void)madvise(run->memory, memory_bytes, o->small_pages ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	iov.iov_base = run->memory;
	for (uint32_t i = 0; i < o->depth; i++) {
		run->slot[i].run = run;
		run->slot[i].op.done = on_done;
		run->slot[i].buf = run->memory + i * o->block_bytes;
		fill(run, run->slot[i].buf);
	}
	r = uring_register_buffers(run->uring, &iov, 1);
	if (r < 0)
		return complain("registering memory (ulimit -l)", r);
	r = nvme_log_open(&options, run->uring, run->stats, &run->log, err, sizeof(err));
	if (r < 0)
		(void)fprintf(stderr, "skvc-bench nvme: %s\n", err);
	return r;
}

/* warm: every byte of the file is written once, and nothing is measured. */
/* The reads that were made, for fio to make them again. */
static int write_list(const struct run *run, uint32_t reads)
{
	char path[PATH_MAX];
	FILE *list;
	int r;

	(void)snprintf(path, sizeof(path), "%s" LIST_SUFFIX, run->o->file);
	list = fopen(path, "we");
	if (!list)
		return complain(path, -errno);
	(void)fprintf(list, "fio version 2 iolog\n%s add\n%s open\n", run->o->file, run->o->file);
	for (uint32_t i = 0; i < reads; i++) {
		struct nvme_place p;

		if (nvme_log_place(run->log, run->order[i % run->blocks], &p) == 0)
			(void)fprintf(list, "%s read %llu %llu\n", run->o->file,
				      (unsigned long long)(p.segment * SEGMENT_BYTES +
							   p.off_sectors * 512ull),
				      (unsigned long long)run->o->block_bytes);
	}
	(void)fprintf(list, "%s close\n", run->o->file);
	r = ferror(list) ? -EIO : 0;
	return fclose(list) == 0 && r == 0 ? 0 : complain(path, -EIO);
}

static int run_log(const struct options *o, bool warm, struct rate ret[WAYS])
{
	struct run run = { .o = o, .seed = 1, .blocks = (uint32_t)(o->bytes / o->block_bytes) };
	int r = open_log(&run);

	if (r == 0 && warm)
		r = measure(&run, WRITE, 0, o->bytes + SEGMENT_BYTES, &ret[WRITE]);
	else if (r == 0)
		r = measure(&run, WRITE, o->seconds, o->bytes / 2, &ret[WRITE]);
	if (r == 0 && !warm)
		r = measure(&run, READ, o->seconds, 0, &ret[READ]);
	if (r == 0 && !warm)
		r = write_list(&run, run.turn);
	for (unsigned way = CHAIN; r == 0 && !warm && o->chain && way < WAYS; way++)
		r = measure(&run, (enum way)way, o->seconds, 0, &ret[way]);
	if (run.log && r < 0)
		(void)complain("the log", r);
	(void)nvme_log_close(run.log);
	(void)uring_free(run.uring);
	free(run.slot);
	free(run.memory);
	free(run.order);
	free(run.stats);
	return r;
}

/* ---- fio ---- */

/* Writes one after the other, behind the log's first segment, with its header; reads as the list says. */
static void fio_command(const struct options *o, enum way way, char *ret, size_t bytes)
{
	int n = snprintf(
		ret, bytes,
		"fio --name=x --iodepth=%u --ioengine=io_uring --direct=1 --fixedbufs=1%s%s "
		"--output-format=json",
		o->depth, o->sqpoll ? " --sqthread_poll=1" : "", o->iopoll ? " --hipri=1" : "");

	if (way == READ)
		(void)snprintf(ret + n, bytes - (size_t)n,
			       " --read_iolog='%s" LIST_SUFFIX "' --replay_no_stall=1", o->file);
	else
		(void)snprintf(ret + n, bytes - (size_t)n,
			       " --filename='%s' --rw=write --bs=%llu --offset=%llu --size=%llu "
			       "--registerfiles=1 --time_based=1 --runtime=%.0f",
			       o->file, (unsigned long long)o->block_bytes,
			       (unsigned long long)SEGMENT_BYTES,
			       (unsigned long long)(o->bytes - SEGMENT_BYTES),
			       o->seconds < 1 ? 1 : o->seconds);
}

static int run_fio(const struct options *o, enum way way, struct rate *ret)
{
	char command[2 * PATH_MAX], *text = malloc(OUTPUT_BYTES);
	const cJSON *job, *side;
	FILE *pipe = NULL;
	cJSON *json = NULL;
	int r = -EIO;

	fio_command(o, way, command, sizeof(command));
	if (text)
		pipe = popen(command, "re");
	if (pipe) {
		size_t n = fread(text, 1, OUTPUT_BYTES - 1, pipe);

		text[n] = '\0';
		if (pclose(pipe) == 0)
			json = cJSON_Parse(text);
	}
	job = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "jobs"), 0);
	side = cJSON_GetObjectItem(job, way_names[way]);
	if (cJSON_IsNumber(cJSON_GetObjectItem(side, "bw_bytes"))) {
		ret->bytes_per_second = cJSON_GetObjectItem(side, "bw_bytes")->valuedouble;
		ret->cores = (cJSON_GetNumberValue(cJSON_GetObjectItem(job, "usr_cpu")) +
			      cJSON_GetNumberValue(cJSON_GetObjectItem(job, "sys_cpu"))) /
			     100;
		r = 0;
	}
	cJSON_Delete(json);
	free(text);
	return r;
}

static bool has_fio(void)
{
	return system("fio --version >/dev/null 2>&1") == 0;
}

/* ---- the rounds ---- */

struct result {
	struct rate log[WAYS], fio[FIO_WAYS]; /* the middle ones */
	bool fio_there;
};

static int by_rate(const void *a, const void *b)
{
	double x = ((const struct rate *)a)->bytes_per_second;
	double y = ((const struct rate *)b)->bytes_per_second;

	return x < y ? -1 : x > y;
}

static struct rate middle(struct rate *rates, uint32_t count)
{
	qsort(rates, count, sizeof(*rates), by_rate);
	return rates[count / 2];
}

/* Reads first: what is written then takes the records' place. */
static void fio_round(const struct options *o, struct rate fio[FIO_WAYS], struct result *ret)
{
	for (unsigned way = FIO_WAYS; way-- && ret->fio_there;) {
		if (run_fio(o, way, &fio[way]) == 0)
			continue;
		(void)fprintf(stderr, "skvc-bench nvme: fio failed: it is left out\n");
		ret->fio_there = false;
	}
}

/*
 * On a file that has been written before, as the daemon's is most of its life: the first writes cost the file system,
 * and the device, more.  fio reads what the log read, in that order: devices have places that they like better.
 */
static int run_rounds(const struct options *o, struct result *ret)
{
	struct rate log[WAYS][16], fio[FIO_WAYS][16], all[WAYS] = { 0 }, its[FIO_WAYS] = { 0 };
	char list[PATH_MAX];
	int r = run_log(o, true, all);

	ret->fio_there = has_fio();
	for (uint32_t i = 0; r == 0 && i < o->rounds; i++) {
		r = run_log(o, false, all);
		if (r == 0)
			fio_round(o, its, ret);
		for (unsigned way = 0; way < WAYS; way++)
			log[way][i] = all[way];
		for (unsigned way = 0; way < FIO_WAYS; way++)
			fio[way][i] = its[way];
	}
	(void)snprintf(list, sizeof(list), "%s" LIST_SUFFIX, o->file);
	(void)unlink(list);
	(void)unlink(o->file);
	for (unsigned way = 0; r == 0 && way < WAYS; way++) {
		ret->log[way] = middle(log[way], o->rounds);
		if (way < FIO_WAYS && ret->fio_there)
			ret->fio[way] = middle(fio[way], o->rounds);
	}
	return r;
}

static void print(const struct options *o, const struct result *r)
{
	(void)printf("file      %s, %llu MiB; blocks of %llu KiB, %u in flight, %s pages\n\n",
		     o->file, (unsigned long long)o->bytes >> 20,
		     (unsigned long long)o->block_bytes >> 10, o->depth,
		     o->small_pages ? "small" : "huge");
	(void)printf("          skvcd GB/s  of a core at 2 GB/s   fio GB/s  of a core   ratio\n");
	for (unsigned way = 0; way < FIO_WAYS; way++) {
		const struct rate *log = &r->log[way], *fio = &r->fio[way];

		(void)printf("%-8s %10.3f %10.2f %10.2f", way_names[way],
			     log->bytes_per_second * 1e-9, log->cores,
			     log->cores * 2e9 / log->bytes_per_second);
		if (r->fio_there)
			(void)printf(" %10.3f %10.2f %8.2f\n", fio->bytes_per_second * 1e-9,
				     fio->cores, log->bytes_per_second / fio->bytes_per_second);
		else
			(void)printf("   there is no fio (apt-get install fio)\n");
	}
	if (!o->chain)
		return;
	(void)printf("\n%u records one behind the other\n"
		     "                GB/s  of a core at 2 GB/s   reads per record\n",
		     o->chain);
	for (unsigned way = CHAIN; way < WAYS; way++) {
		const struct rate *log = &r->log[way];

		(void)printf("%-8s %10.3f %10.2f %10.2f %10.3f\n", way_names[way],
			     log->bytes_per_second * 1e-9, log->cores,
			     log->cores * 2e9 / log->bytes_per_second, log->reads);
	}
}

static void json_rate(cJSON *to, const char *name, const struct rate *rate)
{
	cJSON *j = cJSON_AddObjectToObject(to, name);

	cJSON_AddNumberToObject(j, "bytes_per_second", rate->bytes_per_second);
	cJSON_AddNumberToObject(j, "cores", rate->cores);
}

static int print_json(const struct options *o, const struct result *r)
{
	cJSON *j = cJSON_CreateObject();

	cJSON_AddNumberToObject(j, "file_bytes", (double)o->bytes);
	cJSON_AddNumberToObject(j, "block_bytes", (double)o->block_bytes);
	cJSON_AddNumberToObject(j, "depth", o->depth);
	cJSON_AddNumberToObject(j, "rounds", o->rounds);
	cJSON_AddBoolToObject(j, "small_pages", o->small_pages);
	cJSON_AddBoolToObject(j, "sqpoll", o->sqpoll);
	cJSON_AddBoolToObject(j, "iopoll", o->iopoll);
	cJSON_AddNumberToObject(j, "chain", o->chain);
	for (unsigned way = 0; way < (o->chain ? WAYS : FIO_WAYS); way++) {
		cJSON *w = cJSON_AddObjectToObject(j, way_names[way]);

		json_rate(w, "skvcd", &r->log[way]);
		if (way >= CHAIN)
			cJSON_AddNumberToObject(w, "reads_per_record", r->log[way].reads);
		if (way >= FIO_WAYS || !r->fio_there)
			continue;
		json_rate(w, "fio", &r->fio[way]);
		cJSON_AddNumberToObject(
			w, "ratio", r->log[way].bytes_per_second / r->fio[way].bytes_per_second);
	}
	return output_json(j, stdout);
}

/* ---- options ---- */

static int option(int c, const char *value, struct options *o)
{
	/* flat switch */
	switch (c) {
	case 'f':
		o->file = value;
		return 0;
	case 's':
		return bench_size_parse(value, &o->bytes);
	case 'b':
		return bench_size_parse(value, &o->block_bytes);
	case 'd':
		return bench_count_parse(value, 1, DEPTH_MAX, &o->depth);
	case 't':
		return bench_seconds_parse(value, 0, &o->seconds);
	case 'r':
		return bench_count_parse(value, 1, 15, &o->rounds);
	case 'c':
		return bench_count_parse(value, 0, NVME_LOG_JOIN_MAX, &o->chain);
	case 'p':
		o->small_pages = true;
		return 0;
	case 'q':
		o->sqpoll = true;
		return 0;
	case 'i':
		o->iopoll = true;
		return 0;
	case 'j':
		o->json = true;
		return 0;
	default:
		return -EINVAL;
	}
}

static int check(const struct options *o)
{
	if (!o->file)
		return bench_usage_error("nvme", "--file FILE is missing", "");
	if (o->bytes % SEGMENT_BYTES || o->bytes < 8 * SEGMENT_BYTES)
		return bench_usage_error("nvme", "--size: not a multiple of 64M, at least 512M",
					 "");
	if (o->block_bytes % 4096 || o->block_bytes > 16u << 20)
		return bench_usage_error("nvme", "--block: not a multiple of 4K up to 16M", "");
	if (o->chain > o->depth)
		return bench_usage_error("nvme", "--chain: more than --depth", "");
	if (strchr(o->file, '\''))
		return bench_usage_error("nvme", "no file for a command line: ", o->file);
	if (access(o->file, F_OK) == 0) {
		(void)fprintf(stderr, "skvc-bench nvme: %s is there already\n", o->file);
		return 1;
	}
	return 0;
}

int bench_nvme_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "file", required_argument, NULL, 'f' },
		{ "size", required_argument, NULL, 's' },
		{ "block", required_argument, NULL, 'b' },
		{ "depth", required_argument, NULL, 'd' },
		{ "seconds", required_argument, NULL, 't' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "chain", required_argument, NULL, 'c' },
		{ "small-pages", no_argument, NULL, 'p' },
		{ "sqpoll", no_argument, NULL, 'q' },
		{ "iopoll", no_argument, NULL, 'i' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct options o = {
		.bytes = 4ull << 30, .block_bytes = 1u << 20, .depth = 32, .rounds = 3, .seconds = 5
	};
	struct result result = { 0 };
	int c, r;

	optind = 0;
	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (c == 'h') {
			(void)fputs(usage_text, stdout);
			return 0;
		}
		if (c == '?')
			return 2;
		if (option(c, optarg, &o) < 0)
			return bench_usage_error("nvme", "bad value: ", optarg ? optarg : "");
	}
	if (optind < argc)
		return bench_usage_error("nvme", "too many arguments: ", argv[optind]);
	r = check(&o);
	if (r != 0)
		return r;
	r = run_rounds(&o, &result);
	if (r == 0 && o.json)
		r = print_json(&o, &result);
	else if (r == 0)
		print(&o, &result);
	return r == 0 ? 0 : 1;
}
