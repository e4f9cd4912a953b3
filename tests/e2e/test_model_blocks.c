/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_model_blocks.c - blocks that `model` codes, from the operator's side: a profile in a folder, a model that is
 * added while the daemon runs, blocks coded again after their prefix when nobody wants anything, and given back exact,
 * all of a chain, its end alone, from NVMe, and as a miss with a reason when what is before them is gone.
 */
#include "tests/lib/e2e.h"

#include <signal.h>
#include <unistd.h>

#include "tests/lib/gpu_side.h"
#include "tests/lib/sequence_rig.h"

#define BLOCKS SEQUENCE_RIG_BLOCKS
#define CHAINS 3u
#define WAIT_MS (60000u * E2E_SLOW)
#define WAIT_NS (WAIT_MS * 1000000ull)

static struct private_daemon daemon_;
static const char *gpu = "gpu.device=none"; /* or a simulated one, beside which the model runs */
static struct sequence_rig *rig;
static char folder[32];

struct worker {
	struct skvc_session *session;
	struct skvc_arena *arena;
	uint8_t *pages;
	uint32_t ns, region;
};

/* ---- around it ---- */

static void write_profile(const char *name)
{
	char path[128];
	size_t count;
	const void *bytes = codec_profile_bytes(rig->model, &count);
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	f = fopen(path, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, count, f), count);
	assert_int_equal(fclose(f), 0);
}

static int setup_rig(struct sequence_rig *r)
{
	rig = r;
	(void)snprintf(folder, sizeof(folder), "/tmp/skvcd-shipped-XXXXXX");
	assert_non_null(mkdtemp(folder));
	write_profile("tiny.skvp");
	return 0;
}

static int setup(void **state)
{
	(void)state;
	return setup_rig(sequence_rig_new(0, CODEC_DTYPE_BF16, true, false));
}

/* The model is not the cache's, but a smaller one: a draft, which the CPU runs. */
static int setup_draft(void **state)
{
	(void)state;
	gpu = "gpu.device=none";
	return setup_rig(sequence_rig_draft(0, 2, CODEC_DTYPE_BF16));
}

/* $SKVC_TEST_GPU=auto: a real one. */
static int setup_on_gpu(void **state)
{
	static char setting[64];
	const char *which = getenv("SKVC_TEST_GPU");

	(void)state;
	(void)snprintf(setting, sizeof(setting), "gpu.device=%s", which ? which : "sim");
	if (!which)
		(void)setenv("SKVC_TEST_DEVICE", "sim", 1);
	gpu = setting;
	return setup_rig(sequence_rig_plain(0, CODEC_DTYPE_BF16, true));
}

static int teardown(void **state)
{
	char path[128];

	(void)state;
	(void)snprintf(path, sizeof(path), "%s/tiny.skvp", folder);
	(void)unlink(path);
	(void)rmdir(folder);
	rig = sequence_rig_free(rig);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

static void start_or_again(uint64_t nvme_bytes, const char *more, int again)
{
	char directory[160];
	const char *const overrides[] = { directory,
					  "codec.speculator=model",
					  "profile.priority=normal",
					  "codec.fit_tokens=1000000", /* others have none */
					  gpu,
					  more,
					  NULL };

	(void)snprintf(directory, sizeof(directory), "profile.directory=%s", folder);
	if (again)
		assert_ok(private_daemon_restart(&daemon_, nvme_bytes, overrides));
	else
		assert_ok(private_daemon_start(&daemon_, nvme_bytes, overrides));
}

static void start(uint64_t nvme_bytes, const char *more)
{
	start_or_again(nvme_bytes, more, 0);
}

/* skvcctl's exit status; what it said in text. */
static int ctl(const char *words, char *text, size_t text_bytes)
{
	char command[512];
	size_t n;
	FILE *f;
	int status;

	(void)snprintf(command, sizeof(command), "%s --bus %s %s 2>&1",
		       private_daemon_program("skvcctl"), daemon_.bus, words);
	f = popen(command, "r");
	assert_non_null(f);
	n = fread(text, 1, text_bytes - 1, f);
	text[n] = '\0';
	status = pclose(f);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void says(const char *words, int status, const char *expect)
{
	char text[16384];
	int r = ctl(words, text, sizeof(text));

	if (r != status || !strstr(text, expect))
		fail_msg("skvcctl %s ended with %d, said:\n%s", words, r, text);
}

static void add_model(void)
{
	char words[256];

	(void)snprintf(words, sizeof(words), "model add tiny %s",
		       tiny_model_folder(rig->smaller ? rig->smaller : rig->tiny));
	says(words, 0, "layers, digest");
	says("models", 0, "ready");
}

static void is(const char *name, uint64_t want)
{
	uint64_t until = private_daemon_now_ns() + WAIT_NS;

	while (daemon_stats_now(&daemon_, name) != want) {
		if (private_daemon_now_ns() > until)
			fail_msg("%s is %llu, not %llu", name,
				 (unsigned long long)daemon_stats_now(&daemon_, name),
				 (unsigned long long)want);
		private_daemon_sleep_ms(10);
	}
}

/* Was the model run where it should be? */
static void ran_there(void)
{
	const uint64_t want = strcmp(gpu, "gpu.device=none") != 0;

	assert_int_equal(daemon_stats_now(&daemon_, "sequences_gpu") > 0, want);
}

/* ---- the engine's side ---- */

static void worker_open(struct worker *w)
{
	struct skvc_segment segments[SEQUENCE_RIG_SEGMENTS + 1u];
	const struct skvc_options o = { .name = "tiny" };
	struct skvc_geometry g = { .model = "tiny",
				   .block_tokens = SEQUENCE_RIG_TOKENS,
				   .segments_count = rig->g.segments_count,
				   .segments = segments };

	for (uint32_t i = 0; i < rig->g.segments_count; i++)
		segments[i] = (struct skvc_segment){ .kind = rig->g.segments[i].kind,
						     .dtype = rig->g.segments[i].dtype,
						     .layer = rig->g.segments[i].layer,
						     .heads = rig->g.segments[i].heads,
						     .head_dim = rig->g.segments[i].head_dim };
	assert_ok(skvc_open(daemon_.socket, &o, &w->session));
	assert_ok(skvc_namespace_open(w->session, &g, &w->ns));
	assert_ok(skvc_arena_new(w->session, BLOCKS * rig->g.raw_bytes, &w->arena));
	w->pages = skvc_arena_ptr(w->arena);
	assert_ok(skvc_register_host(w->session, w->ns, w->arena, 0, BLOCKS, NULL, &w->region));
}

static struct skvc_completion finish(struct worker *w, uint64_t job)
{
	struct skvc_completion c;

	assert_ok(skvc_wait(w->session, &job, 1, WAIT_NS));
	assert_ok(skvc_result(w->session, job, &c));
	while (skvc_poll(w->session, &(struct skvc_completion){ 0 }, 1) > 0)
		; /* SOURCE_FREE */
	return c;
}

static void keys_of(uint32_t chain, struct skvc_key *keys)
{
	for (uint32_t i = 0; i < BLOCKS; i++)
		keys[i] = kv_data_key(77, engine_block(chain, i));
}

static const uint32_t all_pages[BLOCKS] = { 0, 1, 2, 3, 4 };

static struct skvc_completion store(struct worker *w, uint32_t chain, uint32_t first,
				    uint32_t count)
{
	struct skvc_key keys[BLOCKS];
	struct skvc_store args = { .ns = w->ns,
				   .region = w->region,
				   .count = count,
				   .keys = keys + first,
				   .parent = first ? keys + first - 1 : NULL,
				   .tokens = (const uint32_t *)rig->ids +
					     first * SEQUENCE_RIG_TOKENS,
				   .blocks = all_pages + first };
	uint64_t job;

	keys_of(chain, keys);
	for (uint32_t i = first; i < first + count; i++)
		memcpy(w->pages + i * rig->g.raw_bytes, rig->block[i], rig->g.raw_bytes);
	assert_ok(skvc_store(w->session, &args, &job));
	return finish(w, job);
}

static struct skvc_completion lookup(struct worker *w, uint32_t chain, uint32_t first,
				     uint32_t count)
{
	struct skvc_key keys[BLOCKS];
	const struct skvc_lookup args = { .ns = w->ns,
					  .count = count,
					  .keys = keys + first,
					  .parent = first ? keys + first - 1 : NULL };
	uint64_t job;

	keys_of(chain, keys);
	assert_ok(skvc_lookup(w->session, &args, &job));
	return finish(w, job);
}

/* Blocks first.. of a lease that begins at block `base`, compared. */
static struct skvc_completion load(struct worker *w, uint64_t lease, uint32_t base, uint32_t first,
				   uint32_t count)
{
	uint64_t bitmap = 0, job;
	const struct skvc_load args = { .lease = lease,
					.region = w->region,
					.first = first,
					.count = count,
					.blocks = all_pages,
					.ret_bitmap = &bitmap };
	struct skvc_completion c;

	memset(w->pages, 0xee, BLOCKS * rig->g.raw_bytes);
	assert_ok(skvc_load(w->session, &args, &job));
	c = finish(w, job);
	for (uint32_t i = 0; i < count; i++)
		if (bitmap >> i & 1u)
			assert_memory_equal(w->pages + i * rig->g.raw_bytes,
					    rig->block[base + first + i], rig->g.raw_bytes);
	return c;
}

static void release(struct worker *w, uint64_t lease)
{
	uint64_t job;

	assert_ok(skvc_release(w->session, lease, &job));
	(void)finish(w, job);
}

static void fetch(struct worker *w, uint32_t chain, uint32_t first, uint32_t count)
{
	struct skvc_completion c = lookup(w, chain, first, count);
	uint64_t lease = c.lease;

	assert_int_equal(c.count, count);
	c = load(w, lease, first, 0, count);
	assert_int_equal(c.res, 0);
	assert_int_equal(c.count, count);
	release(w, lease);
}

static void drop(struct worker *w, uint32_t chain, uint32_t i)
{
	struct skvc_key keys[BLOCKS];
	uint64_t job;

	keys_of(chain, keys);
	assert_ok(skvc_drop(w->session, w->ns, keys + i, 1, &job));
	assert_int_equal(finish(w, job).count, 1);
}

/* ---- tests ---- */

static void test_coded_after_their_prefix(void **state)
{
	struct skvc_completion c;
	struct worker w;
	uint64_t before;

	(void)state;
	start(0, "model.sequences=1");
	worker_open(&w);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		assert_int_equal(store(&w, chain, 0, BLOCKS).count, BLOCKS);
	says("profiles", 0, "in-use");
	assert_int_equal(daemon_stats_now(&daemon_, "model_blocks"), 0);
	add_model();
	is("model_blocks", CHAINS * BLOCKS);
	says("profiles", 0,
	     rig->params && mspec_params_mode(rig->params) == MSPEC_DRAFT ? ", model (draft), "
									  : ", model (copy), ");
	assert_int_equal(daemon_stats_now(&daemon_, "recode_failed"), 0);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		fetch(&w, chain, 0, BLOCKS);
	ran_there();
	/* In two loads of one lease, the second goes on from the first; then backwards, which cannot. */
	c = lookup(&w, 1, 0, BLOCKS);
	before = daemon_stats_now(&daemon_, "sequence_steps");
	assert_int_equal(load(&w, c.lease, 0, 0, 2).count, 2);
	assert_int_equal(load(&w, c.lease, 0, 2, BLOCKS - 2).count, BLOCKS - 2);
	assert_int_equal(daemon_stats_now(&daemon_, "sequence_steps"), before);
	assert_int_equal(load(&w, c.lease, 0, 1, 1).count, 1);
	assert_int_equal(load(&w, c.lease, 0, 0, 1).count, 1);
	release(&w, c.lease);
	/* The end of a chain alone: its prefix is looked up here. */
	fetch(&w, 2, BLOCKS - 1, 1);
	assert_true(daemon_stats_now(&daemon_, "sequence_steps") > before);
	assert_int_equal(daemon_stats_now(&daemon_, "checksum_failures"), 0);
	skvc_close(w.session);
}

static void test_without_its_prefix_a_miss(void **state)
{
	struct skvc_completion c;
	struct worker w;

	(void)state;
	start(0, "model.idle=0ms");
	add_model();
	worker_open(&w);
	assert_int_equal(store(&w, 0, 0, BLOCKS).count, BLOCKS);
	is("model_blocks", BLOCKS);
	c = lookup(&w, 0, 2, BLOCKS - 2);
	assert_int_equal(c.count, BLOCKS - 2);
	drop(&w, 0, 0);
	/* Who has a lease on the end alone gets a miss, and so does who asks for it. */
	assert_int_equal(load(&w, c.lease, 2, 0, BLOCKS - 2).count, 0);
	release(&w, c.lease);
	c = lookup(&w, 0, 2, BLOCKS - 2);
	assert_int_equal(c.res, -ENOENT);
	assert_string_equal(skvc_reason_name(c.reason), "prefix-gone");
	/* Stored again, however that is coded, it serves as prefix. */
	assert_int_equal(store(&w, 0, 0, 1).count, 1);
	fetch(&w, 0, 0, BLOCKS);
	assert_int_equal(daemon_stats_now(&daemon_, "checksum_failures"), 0);
	skvc_close(w.session);
}

/* Blocks coded with the model, and others of another engine that push them out of host memory. */
static void spilled(struct worker *w, struct engine *p)
{
	struct engine_options push = {
		.seed = 4, .model = "push", .layers = 16, .heads = 4, .blocks = 32
	};
	struct skvc_completion c;

	start(96u << 20, "host.spill_percent=1");
	add_model();
	worker_open(w);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		assert_int_equal(store(w, chain, 0, BLOCKS).count, BLOCKS);
	is("model_blocks", CHAINS * BLOCKS);
	assert_ok(engine_open(p, daemon_.socket, &push));
	for (uint64_t chain = 0; chain < 4; chain++)
		assert_ok(engine_store(p, chain, 0, 32, &c));
}

static void test_from_nvme(void **state)
{
	struct engine p;
	struct worker w;

	(void)state;
	spilled(&w, &p);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		fetch(&w, chain, chain, BLOCKS - chain);
	assert_true(daemon_stats_now(&daemon_, "fetch_blocks") > 0);
	assert_int_equal(daemon_stats_now(&daemon_, "checksum_failures"), 0);
	engine_close(&p);
	skvc_close(w.session);
}

/* Until nothing is written any more. */
static uint64_t blocks_on_nvme(void)
{
	uint64_t n = 0, written = 0, before, written_before;
	unsigned quiet = 0;

	/* What names their namespace and has their profile is written soon after them. */
	while (quiet < 15) {
		before = n;
		written_before = written;
		private_daemon_sleep_ms(100);
		n = daemon_stats_now(&daemon_, "blocks_nvme");
		written = daemon_stats_now(&daemon_, "nvme_written_bytes");
		quiet = n && n == before && written == written_before &&
					!daemon_stats_now(&daemon_, "nvme_inflight")
				? quiet + 1
				: 0;
	}
	return n;
}

/* The daemon is killed: the blocks, their profile and how they hang together come back, and then the model. */
static void test_found_again(void **state)
{
	uint64_t until, on_nvme;
	char text[16384];
	struct engine p;
	struct worker w;

	(void)state;
	spilled(&w, &p);
	on_nvme = blocks_on_nvme();
	private_daemon_kill(&daemon_, SIGKILL);
	engine_close(&p);
	skvc_close(w.session);
	start_or_again(96u << 20, "host.spill_percent=1", 1);
	assert_int_equal(daemon_stats_now(&daemon_, "blocks_nvme"), on_nvme);
	until = private_daemon_now_ns() + WAIT_NS;
	while (ctl("models", text, sizeof(text)) != 0 || !strstr(text, "ready")) {
		assert_true(private_daemon_now_ns() < until);
		private_daemon_sleep_ms(20);
	}
	worker_open(&w);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		fetch(&w, chain, chain, BLOCKS - chain);
	assert_true(daemon_stats_now(&daemon_, "fetch_blocks") > 0);
	assert_int_equal(daemon_stats_now(&daemon_, "checksum_failures"), 0);
	skvc_close(w.session);
}

/* An engine's own GPU memory: blocks are decoded beside it, and copied in. */
static void test_into_gpu_memory(void **state)
{
	struct skvc_completion c;
	struct skvc_gpu_export export;
	struct gpu_memory memory;
	struct gpu_side side;
	uint64_t bitmap = 0, job, bytes;
	struct worker w;
	uint32_t region;
	uint8_t *back;

	(void)state;
	if (gpu_side_open(&side) != 0)
		fail_msg("no GPU");
	start(0, NULL);
	add_model();
	worker_open(&w);
	assert_int_equal(store(&w, 0, 0, BLOCKS).count, BLOCKS);
	is("model_blocks", BLOCKS);
	bytes = (BLOCKS * rig->g.raw_bytes / GPU_SIDE_GRAIN + 1) * GPU_SIDE_GRAIN;
	gpu_side_memory_new(&side, GPU_SIDE_VMM, bytes, &memory);
	gpu_side_fill(&side, &memory, 0x77);
	export = gpu_side_export(&side, &memory);
	if (skvc_register_gpu(w.session, w.ns, &export, 1, BLOCKS, NULL, &region) < 0)
		fail_msg("%s", skvc_last_error(w.session));
	c = lookup(&w, 0, 0, BLOCKS);
	assert_int_equal(c.count, BLOCKS);
	assert_ok(skvc_load(w.session,
			    &(struct skvc_load){ .lease = c.lease,
						 .region = region,
						 .count = BLOCKS,
						 .blocks = all_pages,
						 .ret_bitmap = &bitmap },
			    &job));
	assert_int_equal(finish(&w, job).count, BLOCKS);
	release(&w, c.lease);
	back = malloc(bytes);
	assert_non_null(back);
	gpu_side_read(&side, &memory, back);
	for (uint32_t i = 0; i < BLOCKS; i++)
		assert_memory_equal(back + i * rig->g.raw_bytes, rig->block[i], rig->g.raw_bytes);
	assert_int_equal(back[BLOCKS * rig->g.raw_bytes], 0x77);
	ran_there();
	skvc_close(w.session);
	gpu_side_memory_free(&side, &memory);
	gpu_side_close(&side);
	free(back);
}

/* Sequences may be shorter now than when the blocks were coded: what is too far on is a miss. */
static void test_shorter_sequences(void **state)
{
	uint64_t until;
	char text[16384];
	struct skvc_completion c;
	struct engine p;
	struct worker w;

	(void)state;
	spilled(&w, &p);
	(void)blocks_on_nvme();
	private_daemon_kill(&daemon_, SIGKILL);
	engine_close(&p);
	skvc_close(w.session);
	start_or_again(96u << 20, "model.tokens_max=48", 1);
	until = private_daemon_now_ns() + WAIT_NS;
	while (ctl("models", text, sizeof(text)) != 0 || !strstr(text, "ready")) {
		assert_true(private_daemon_now_ns() < until);
		private_daemon_sleep_ms(20);
	}
	worker_open(&w);
	c = lookup(&w, 0, 0, BLOCKS);
	assert_true(c.count >= 3);
	assert_int_equal(load(&w, c.lease, 0, 0, c.count).count, 3);
	release(&w, c.lease);
	assert_int_equal(lookup(&w, 0, 3, BLOCKS - 3).count, 0);
	skvc_close(w.session);
}

/* A GPU that cannot hold the model leaves it to the CPU. */
static void test_without_memory(void **state)
{
	struct worker w;

	(void)state;
	start(0, "fault.gpu=prepare:eio:every=1");
	add_model();
	worker_open(&w);
	assert_int_equal(store(&w, 0, 0, BLOCKS).count, BLOCKS);
	is("model_blocks", BLOCKS);
	assert_int_equal(daemon_stats_now(&daemon_, "sequences_gpu"), 0);
	fetch(&w, 0, 0, BLOCKS);
	skvc_close(w.session);
}

/* One that fails whatever it is given is not asked again and again; blocks stay as they are. */
static void test_without_a_result(void **state)
{
	struct worker w;

	(void)state;
	start(0, "fault.gpu=encode:eio:every=1");
	add_model();
	worker_open(&w);
	assert_int_equal(store(&w, 0, 0, BLOCKS).count, BLOCKS);
	while (daemon_stats_now(&daemon_, "recode_stopped") == 0)
		private_daemon_sleep_ms(10);
	private_daemon_sleep_ms(500);
	assert_in_range(daemon_stats_now(&daemon_, "recode_stopped"), 1, 10);
	assert_int_equal(daemon_stats_now(&daemon_, "model_blocks"), 0);
	fetch(&w, 0, 0, BLOCKS);
	skvc_close(w.session);
}

/* More loads than prefixes can be kept, each in two parts, all under way together. */
static void test_many_at_once(void **state)
{
	uint64_t jobs[2 * CHAINS], leases[CHAINS], bitmap[2 * CHAINS] = { 0 };
	struct worker w[2 * CHAINS];

	(void)state;
	start(0, "model.sequences=2");
	add_model();
	for (uint32_t i = 0; i < 2 * CHAINS; i++)
		worker_open(&w[i]);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		assert_int_equal(store(&w[chain], chain, 0, BLOCKS).count, BLOCKS);
	is("model_blocks", CHAINS * BLOCKS);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		leases[chain] = lookup(&w[chain], chain, 0, BLOCKS).lease;
	for (uint32_t i = 0; i < 2 * CHAINS; i++) {
		const uint32_t first = i < CHAINS ? 0 : 2, count = i < CHAINS ? 2 : BLOCKS - 2;
		const struct skvc_load args = { .lease = leases[i % CHAINS],
						.region = w[i].region,
						.first = first,
						.count = count,
						.blocks = all_pages + first,
						.ret_bitmap = &bitmap[i] };

		assert_ok(skvc_load(w[i].session, &args, &jobs[i]));
	}
	for (uint32_t i = 0; i < 2 * CHAINS; i++) {
		const uint32_t first = i < CHAINS ? 0 : 2, count = i < CHAINS ? 2 : BLOCKS - 2;

		assert_int_equal(finish(&w[i], jobs[i]).count, count);
		for (uint32_t b = first; b < first + count; b++)
			assert_memory_equal(w[i].pages + b * rig->g.raw_bytes, rig->block[b],
					    rig->g.raw_bytes);
	}
	for (uint32_t i = 0; i < 2 * CHAINS; i++)
		skvc_close(w[i].session);
}

/* Whatever fails on the way, what is reported as restored is exact, and nothing hangs or stays held. */
static void test_failing_device(void **state)
{
	struct skvc_completion c;
	uint64_t restored = 0;
	struct worker w;

	(void)state;
	start(0, !strcmp(gpu, "gpu.device=none") ? "fault.device=decode:eio:every=5"
						 : "fault.gpu=decode:eio:every=5");
	add_model();
	worker_open(&w);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		(void)store(&w, chain, 0, BLOCKS);
	while (daemon_stats_now(&daemon_, "model_blocks") == 0)
		private_daemon_sleep_ms(10); /* some are coded again, some are not */
	for (uint32_t round = 0; round < 40; round++) {
		c = lookup(&w, round % CHAINS, 0, BLOCKS);
		if (!c.count)
			continue;
		restored += load(&w, c.lease, 0, 0, c.count).count;
		release(&w, c.lease);
	}
	assert_true(restored > 0);
	assert_true(daemon_stats_now(&daemon_, "load_failed_blocks") > 0);
	for (uint32_t chain = 0; chain < CHAINS; chain++)
		for (uint32_t i = BLOCKS; i-- > 0;)
			drop(&w, chain, i);
	is("pool_used_bytes", 0);
	skvc_close(w.session);
}

/* Files that are no profile, and ids that are no tokens, cost nothing but size. */
static void test_nonsense(void **state)
{
	int32_t own = rig->ids[3];
	char path[128];
	struct worker w;
	FILE *f;

	(void)state;
	(void)snprintf(path, sizeof(path), "%s/tiny.skvp", folder);
	f = fopen(path, "r+b");
	assert_non_null(f);
	assert_int_equal(fseek(f, -100, SEEK_END), 0);
	assert_int_equal(fputc(0x5a, f), 0x5a);
	assert_int_equal(fputc(0xa5, f), 0xa5);
	assert_int_equal(fclose(f), 0);
	start(0, NULL);
	add_model();
	worker_open(&w);
	assert_int_equal(store(&w, 0, 0, BLOCKS).count, BLOCKS);
	fetch(&w, 0, 0, BLOCKS);
	assert_int_equal(daemon_stats_now(&daemon_, "model_blocks"), 0);
	skvc_close(w.session);
	assert_int_equal(private_daemon_stop(&daemon_), 0);
	write_profile("tiny.skvp");
	start(0, NULL);
	add_model();
	worker_open(&w);
	rig->ids[3] =
		-5; /* of the first block: it is coded without the model, the others with it */
	assert_int_equal(store(&w, 0, 0, BLOCKS).count, BLOCKS);
	rig->ids[3] = own;
	is("model_blocks", BLOCKS - 1);
	fetch(&w, 0, 0, BLOCKS);
	skvc_close(w.session);
}

/* Nothing was shipped: it learns from what is stored. */
static void test_fitted_by_itself(void **state)
{
	static const char *const overrides[] = {
		"codec.speculator=model", "profile.priority=normal",	"codec.fit_tokens=80",
		"model.fit_tokens=160",	  "model.draft_fit_tokens=160", NULL
	};
	struct worker w;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, 0, overrides));
	worker_open(&w);
	assert_int_equal(store(&w, 0, 0, BLOCKS).count, BLOCKS);
	is("profiles_fitted", 1);
	add_model();
	assert_int_equal(store(&w, 1, 0, BLOCKS).count, BLOCKS);
	is("model_blocks", 2 * BLOCKS);
	says("profiles", 0,
	     rig->params && mspec_params_mode(rig->params) == MSPEC_DRAFT ? ", model (draft), "
									  : ", model (copy), ");
	for (uint32_t chain = 0; chain < 2; chain++)
		fetch(&w, chain, 0, BLOCKS);
	assert_int_equal(daemon_stats_now(&daemon_, "checksum_failures"), 0);
	skvc_close(w.session);
}

static void test_models_that_are_not(void **state)
{
	char words[256];

	(void)state;
	start(0, NULL);
	says("models", 0, "No model was added");
	says("model add nothing /nonexistent/folder", 1, "No such file");
	(void)snprintf(words, sizeof(words), "model add empty %s", folder);
	says(words, 1, "config.json");
	says("models", 0, "failed");
	says("model add .hidden /tmp", 1, "a name has letters");
	says("model remove empty", 0, "");
	says("model remove nobody", 1, "no model of this name");
	says("model add", 2, "model add NAME FOLDER");
	add_model();
	(void)snprintf(words, sizeof(words), "model add tiny %s", tiny_model_folder(rig->tiny));
	says(words, 1, "there is a model of this name");
	/* It is there again after a restart, until it is removed. */
	private_daemon_kill(&daemon_, SIGKILL);
	assert_ok(private_daemon_restart(&daemon_, 0, NULL));
	for (unsigned i = 0;; i++) {
		char text[4096];

		assert_int_equal(ctl("models", text, sizeof(text)), 0);
		if (strstr(text, "ready"))
			break;
		assert_true(i < WAIT_MS / 10);
		private_daemon_sleep_ms(10);
	}
	says("model remove tiny", 0, "");
	says("-j models", 0, "\"removed\"");
	private_daemon_kill(&daemon_, SIGKILL);
	assert_ok(private_daemon_restart(&daemon_, 0, NULL));
	says("models", 0, "No model was added");
}

int main(void)
{
	const struct CMUnitTest beside_a_gpu[] = {
		cmocka_unit_test_teardown(test_coded_after_their_prefix, stop),
		cmocka_unit_test_teardown(test_without_its_prefix_a_miss, stop),
		cmocka_unit_test_teardown(test_from_nvme, stop),
		cmocka_unit_test_teardown(test_many_at_once, stop),
		cmocka_unit_test_teardown(test_failing_device, stop),
		cmocka_unit_test_teardown(test_into_gpu_memory, stop),
		cmocka_unit_test_teardown(test_shorter_sequences, stop),
		cmocka_unit_test_teardown(test_without_memory, stop),
		cmocka_unit_test_teardown(test_without_a_result, stop),
	};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_coded_after_their_prefix, stop),
		cmocka_unit_test_teardown(test_without_its_prefix_a_miss, stop),
		cmocka_unit_test_teardown(test_from_nvme, stop),
		cmocka_unit_test_teardown(test_found_again, stop),
		cmocka_unit_test_teardown(test_shorter_sequences, stop),
		cmocka_unit_test_teardown(test_many_at_once, stop),
		cmocka_unit_test_teardown(test_failing_device, stop),
		cmocka_unit_test_teardown(test_nonsense, stop),
		cmocka_unit_test_teardown(test_fitted_by_itself, stop),
		cmocka_unit_test_teardown(test_models_that_are_not, stop),
	};

	const struct CMUnitTest by_a_draft[] = {
		cmocka_unit_test_teardown(test_coded_after_their_prefix, stop),
		cmocka_unit_test_teardown(test_without_its_prefix_a_miss, stop),
		cmocka_unit_test_teardown(test_from_nvme, stop),
		cmocka_unit_test_teardown(test_fitted_by_itself, stop),
	};

	int failed = cmocka_run_group_tests(tests, setup, teardown);

	failed += cmocka_run_group_tests_name("by_a_draft", by_a_draft, setup_draft, teardown);
	return failed +
	       cmocka_run_group_tests_name("beside_a_gpu", beside_a_gpu, setup_on_gpu, teardown);
}
