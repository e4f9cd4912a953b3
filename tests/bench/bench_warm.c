/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_warm [MIB [LAYERS [STARTS [OVERRIDE...]]]] - how long a daemon with a full pool of so many MiB (4096) is away
 * when it is restarted in order: from SIGTERM until the old one has ended, and from there until the new one is ready.
 * Blocks are those of Qwen3-8B (36 layers), or smaller ones with less LAYERS.  At the end, each block is loaded and
 * compared.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/lib/daemon_stats.h"
#include "tests/lib/engine.h"
#include "tests/lib/fd_keeper.h"
#include "tests/lib/private_daemon.h"

#define CHAIN_BLOCKS 32u
#define FULL_PERCENT 90u

static struct fd_keeper keeper;
static struct private_daemon daemon_ = { .keeper = &keeper };

static void check(const char *what, int r)
{
	if (r >= 0)
		return;
	fprintf(stderr, "bench_warm: %s: %s\n", what, strerror(-r));
	exit(1);
}

/* Chains that were stored. */
static uint64_t fill(struct engine *e)
{
	struct skvc_completion c;
	uint64_t chain = 0;

	do {
		check("store", engine_store(e, chain++, 0, CHAIN_BLOCKS, &c));
		check("stats", daemon_stats_read(&daemon_));
	} while (daemon_stats_get("pool_slot_bytes") <
		 daemon_stats_get("pool_bytes") / 100 * FULL_PERCENT);
	return chain;
}

static double ms_since(uint64_t start_ns)
{
	return (double)(private_daemon_now_ns() - start_ns) / 1e6;
}

static void restart(const char *const *overrides)
{
	uint64_t before = daemon_stats_now(&daemon_, "blocks_host"), start_ns, ended_ns;
	unsigned ready = fd_keeper_ready(&keeper);
	double stopped, started;

	start_ns = private_daemon_now_ns();
	(void)kill(daemon_.pid, SIGTERM);
	private_daemon_kill(&daemon_, 0); /* and wait */
	stopped = ms_since(start_ns);
	ended_ns = private_daemon_now_ns();
	check("start", private_daemon_restart(&daemon_, 0, overrides));
	while (fd_keeper_ready(&keeper) == ready)
		private_daemon_sleep_ms(1);
	started = ms_since(ended_ns);
	check("stats", daemon_stats_read(&daemon_));
	printf("stop %.0f ms, start %.0f ms, together %.0f ms; %llu blocks of %llu before "
	       "(%.0f ms to find them)\n",
	       stopped, started, ms_since(start_ns),
	       (unsigned long long)daemon_stats_get("host_restored_blocks"),
	       (unsigned long long)before, (double)daemon_stats_get("host_restore_ns") / 1e6);
}

int main(int argc, char **argv)
{
	const char *mib = argc > 1 ? argv[1] : "4096";
	struct engine_options o = { .seed = 3,
				    .layers = argc > 2 ? (uint32_t)atoi(argv[2]) : 36,
				    .heads = 8,
				    .head_dim = 128,
				    .blocks = CHAIN_BLOCKS };
	unsigned starts = argc > 3 ? (unsigned)atoi(argv[3]) : 3;
	const char *overrides[PRIVATE_DAEMON_OVERRIDES_MAX] = { NULL };
	uint64_t chains, exact = 0;
	char pool[32];
	struct engine e;

	setvbuf(stdout, NULL, _IOLBF, 0);
	(void)snprintf(pool, sizeof(pool), "host.pool=%sM", mib);
	overrides[0] = pool;
	for (int i = 4; i < argc && i < 20; i++)
		overrides[i - 3] = argv[i];
	fd_keeper_open(&keeper);
	check("daemon", private_daemon_start(&daemon_, 0, overrides));
	check("session", engine_open(&e, daemon_.socket, &o));
	chains = fill(&e);
	printf("pool of %s MiB: %llu blocks in %llu MiB\n", mib,
	       (unsigned long long)daemon_stats_get("blocks_host"),
	       (unsigned long long)(daemon_stats_get("pool_used_bytes") >> 20));
	for (unsigned i = 0; i < starts; i++)
		restart(overrides);
	check("reconnect", skvc_reconnect(e.session));
	for (uint64_t chain = 0; chain < chains; chain++) {
		int n = engine_fetch(&e, chain, CHAIN_BLOCKS);

		check("load", n);
		exact += (uint64_t)n;
	}
	printf("%llu of %llu blocks loaded and exact\n", (unsigned long long)exact,
	       (unsigned long long)chains * CHAIN_BLOCKS);
	engine_close(&e);
	check("stop", private_daemon_stop(&daemon_));
	fd_keeper_close(&keeper);
	return exact == chains * CHAIN_BLOCKS ? 0 : 1;
}
