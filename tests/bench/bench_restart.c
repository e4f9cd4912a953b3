/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_restart [BLOCKS [FOLDER [STARTS]]] - how long a lane takes to start with a log of so many blocks (10 million):
 * a made-up checkpoint in a file of 16384 segments, as many as 1 TiB has at 64 MiB.  The segments are of 1 MiB, so that
 * it fits on a disk; there are no records in them, and none is read at a start.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <sodium.h>

#include "daemon/lane.h"
#include "daemon/nvme_format.h"
#include "daemon/nvme_log.h"
#include "daemon/persist.h"
#include "daemon/util/clock.h"
#include "tests/lib/rng.h"

#define SEGMENT_BYTES (1u << 20)
#define SEGMENTS 16384u
#define DATA_FIRST 4096u /* those below are for the checkpoint */
#define PIECE_BLOCKS 1000u

struct maker {
	struct rng rng;
	uint32_t blocks, made;
	int done, meta_made;
};

static struct namespace ns;
static const struct codec_segment layout[2] = {
	{ .kind = CODEC_KIND_K, .dtype = CODEC_DTYPE_BF16, .heads = 2, .head_dim = 64 },
	{ .kind = CODEC_KIND_V, .dtype = CODEC_DTYPE_BF16, .heads = 2, .head_dim = 64 },
};

static void die(const char *what, int r)
{
	fprintf(stderr, "bench_restart: %s: %s\n", what, strerror(-r));
	exit(1);
}

static void nobody(void *user, uint32_t block)
{
	(void)user;
	(void)block;
}

static void on_done(void *user, int res)
{
	if (res < 0)
		die("checkpoint", res);
	((struct maker *)user)->done = 1;
}

static uint32_t make_meta(void *user, uint8_t *buf, uint32_t cap)
{
	struct maker *m = user;
	struct persist_meta h = { .kind = PERSIST_META_NS,
				  .bytes = sizeof(struct persist_ns) + sizeof(layout) };
	struct persist_ns n = { .tenant = "bench", .model = "bench", .block_tokens = 16 };

	(void)cap;
	if (m->meta_made++)
		return 0;
	n.segments_count = 2;
	memset(h.ns_digest, 7, sizeof(h.ns_digest));
	memcpy(buf, &h, sizeof(h));
	memcpy(buf + sizeof(h), &n, sizeof(n));
	memcpy(buf + sizeof(h) + sizeof(n), layout, sizeof(layout));
	return (uint32_t)sizeof(h) + h.bytes;
}

static void put_block(struct maker *m, uint8_t *buf, const uint32_t *off, uint32_t i)
{
	uint32_t id = m->made, parent = id % 64 ? id - 1 : UINT32_MAX, sectors = 16, zero = 0;
	uint32_t segment = DATA_FIRST + rng_below(&m->rng, SEGMENTS - DATA_FIRST);
	uint32_t at = 8 * (1 + rng_below(&m->rng, 200)), position = id % 64 * 16;
	uint64_t sequence = segment, hash = rng_next(&m->rng), xxh3 = rng_next(&m->rng);
	uint8_t len = 32, none = 0, flags = PERSIST_HAS_TOKENS;
	uint16_t padding = (uint16_t)rng_below(&m->rng, 4096);

#define PUT(column, value) \
	memcpy(buf + off[PERSIST_##column] + i * sizeof(value), &(value), sizeof(value))
	rng_fill(&m->rng, buf + off[PERSIST_KEY] + (size_t)i * 32, 32);
	PUT(RAW_XXH3, xxh3);
	PUT(TOKEN_HASH, hash);
	PUT(SEQUENCE, sequence);
	PUT(SEGMENT, segment);
	PUT(OFF_SECTORS, at);
	PUT(SECTORS, sectors);
	PUT(POSITION, position);
	PUT(ID, id);
	PUT(GENERATION, zero);
	PUT(PARENT, parent);
	PUT(PARENT_GENERATION, zero);
	PUT(GROUP, zero);
	PUT(PADDING, padding);
	PUT(TABLE, none);
	PUT(PROFILE, none);
	PUT(KEY_LEN, len);
	PUT(FLAGS, flags);
#undef PUT
	m->made++;
}

static uint32_t make_piece(void *user, uint8_t *buf, uint32_t cap)
{
	struct maker *m = user;
	struct persist_piece h = { .tables = 1 };
	uint32_t off[PERSIST_COLUMN_COUNT + 1];
	struct persist_table t = { 0 };

	h.count = m->blocks - m->made < PIECE_BLOCKS ? m->blocks - m->made : PIECE_BLOCKS;
	if (!h.count)
		return 0;
	memset(t.ns_digest, 7, sizeof(t.ns_digest));
	memcpy(buf, &h, sizeof(h));
	memcpy(buf + sizeof(h), &t, sizeof(t));
	persist_columns(h.count, h.tables, off);
	if (off[PERSIST_COLUMN_COUNT] > cap)
		die("piece", -EFBIG);
	for (uint32_t i = 0; i < h.count; i++)
		put_block(m, buf, off, i);
	return off[PERSIST_COLUMN_COUNT];
}

static void write_headers(const char *path, uint64_t log_id)
{
	static _Alignas(4096) uint8_t block[4096];
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	for (uint32_t i = DATA_FIRST; fd >= 0 && i < SEGMENTS; i++) {
		struct nvme_segment_header h = { .magic = NVME_SEGMENT_MAGIC,
						 .version = NVME_FORMAT_VERSION,
						 .kind = NVME_KIND_DATA,
						 .log_id = log_id,
						 .sequence = i,
						 .segment = i };

		h.xxh3 = nvme_format_xxh3(&h, sizeof(h));
		memcpy(block, &h, sizeof(h));
		if (pwrite(fd, block, sizeof(block), (off_t)i * SEGMENT_BYTES) < 0)
			die(path, -errno);
	}
	if (fd < 0 || fsync(fd) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
		die(path, -errno);
	(void)close(fd);
}

static void write_blob(struct nvme_log *log, struct uring *u, struct maker *m, enum nvme_blob kind)
{
	struct nvme_blob_source source = { .next = kind == NVME_BLOB_META ? make_meta : make_piece,
					   .done = on_done,
					   .user = m };
	int r = nvme_log_blob_start(log, kind, &source);

	if (r < 0)
		die("blob", r);
	for (m->done = 0; !m->done;) {
		nvme_log_tick(log, clock_now_ns());
		if (uring_sleep(u, CLOCK_NS_PER_MS) < 0)
			die("ring", -EIO);
		(void)uring_reap(u, 64);
	}
}

static void make_log(const char *path, uint32_t blocks)
{
	struct nvme_log_options o = { .path = path,
				      .bytes = (uint64_t)SEGMENTS * SEGMENT_BYTES,
				      .segment_bytes = SEGMENT_BYTES,
				      .queue_depth = 16,
				      .deadline_ns = 60 * CLOCK_NS_PER_S,
				      .retry_ns = CLOCK_NS_PER_S,
				      .blocks_max = 1,
				      .keep = 1,
				      .allow_buffered = 1,
				      .evict = nobody };
	struct stats *stats = calloc(1, sizeof(*stats));
	struct maker m = { .blocks = blocks };
	struct nvme_log *log;
	struct uring *u;
	char err[256];
	int r;

	rng_init(&m.rng, 1);
	r = uring_new(64, NULL, &u);
	if (r < 0)
		die(uring_hint(r), r);
	r = nvme_log_open(&o, u, stats, &log, err, sizeof(err));
	if (r < 0)
		die(err, r);
	write_headers(path, nvme_log_id(log));
	write_blob(log, u, &m, NVME_BLOB_META);
	write_blob(log, u, &m, NVME_BLOB_CHECKPOINT);
	printf("checkpoint: %.1f MiB, %.1f bytes a block\n",
	       (double)nvme_log_blob_bytes(log, NVME_BLOB_CHECKPOINT) / (1 << 20),
	       (double)nvme_log_blob_bytes(log, NVME_BLOB_CHECKPOINT) / blocks);
	while (nvme_log_inflight(log)) {
		(void)uring_sleep(u, CLOCK_NS_PER_MS);
		(void)uring_reap(u, 64);
	}
	(void)nvme_log_close(log);
	(void)uring_free(u);
	free(stats);
}

static int give_ns(void *user, const struct lane_saved_ns *saved, struct namespace **ret)
{
	static struct tenant tenant;

	(void)user;
	ns.tenant = &tenant;
	memcpy(ns.digest, saved->digest, sizeof(ns.digest));
	*ret = &ns;
	return codec_geometry_init(&ns.geom, saved->block_tokens, saved->segments,
				   saved->segments_count);
}

/* CPU time of this process. */
static void cpu_s(double *ret_user, double *ret_system)
{
	struct rusage u;

	(void)getrusage(RUSAGE_SELF, &u);
	*ret_user = (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec / 1e6;
	*ret_system = (double)u.ru_stime.tv_sec + (double)u.ru_stime.tv_usec / 1e6;
}

static void start_lane(const char *path, uint32_t blocks)
{
	const struct lane_restore restore = { .ns = give_ns };
	uint64_t start_ns;
	struct config c;
	struct lane *lane;
	char err[512];
	double took, user[2], system[2];
	int r;

	config_default(&c);
	c.pool_bytes = 64u << 20;
	c.lock_memory = 0;
	c.cpu_workers = 1;
	c.blocks_max = blocks + 1000;
	c.nvme_bytes = (uint64_t)SEGMENTS * SEGMENT_BYTES;
	c.nvme_segment_bytes = SEGMENT_BYTES;
	(void)snprintf(c.nvme_path, sizeof(c.nvme_path), "%s", path);
	(void)snprintf(c.gpu_device, sizeof(c.gpu_device), "none");
	cpu_s(&user[0], &system[0]);
	start_ns = clock_now_ns();
	r = lane_start(&c, &restore, &lane, err, sizeof(err));
	took = (double)(clock_now_ns() - start_ns) / 1e9;
	cpu_s(&user[1], &system[1]);
	if (r < 0)
		die(err, r);
	printf("start: %.2f s (CPU %.2f s user, %.2f s system) for %llu blocks of %u\n", took,
	       user[1] - user[0], system[1] - system[0],
	       (unsigned long long)stats_get(lane_stats(lane), STAT_NVME_RESTORED_BLOCKS), blocks);
	(void)mailbox_send(lane_inbox(lane), &(struct mail){ .type = LANE_STOP });
	(void)lane_join(lane);
	codec_geometry_deinit(&ns.geom);
	memset(&ns, 0, sizeof(ns));
}

int main(int argc, char **argv)
{
	uint32_t blocks = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 0) : 10000000;
	unsigned starts = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 0) : 3;
	char path[512];

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (sodium_init() < 0)
		return 1;
	(void)snprintf(path, sizeof(path), "%s/bench_restart.%d", argc > 2 ? argv[2] : ".",
		       (int)getpid());
	make_log(path, blocks);
	for (unsigned i = 0; i < starts; i++)
		start_lane(path, blocks);
	(void)unlink(path);
	return 0;
}
