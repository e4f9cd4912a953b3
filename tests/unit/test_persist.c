/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_persist.c - what a lane writes to NVMe beside the records, and when.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <errno.h>

#include <cmocka.h>

#include "daemon/lane_state.h"
#include "tests/lib/lane_rig.h"

#define BLOCKS 4u
#define OTHERS 80u /* namespaces: a piece each, of which a quarter of the log has room for 60 */

static struct rig rig;
static struct lane_rig_session rs;
static struct namespace others[OTHERS];
static char path[64];

static uint64_t counter(enum stats_id id)
{
	return stats_get(lane_stats(rig.lane), id);
}

static int setup(void **state)
{
	struct config c;
	int fd;

	(void)state;
	(void)snprintf(path, sizeof(path), "./skvcd-test-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(close(fd), 0);
	lane_rig_config(&c);
	c.speculator = CONFIG_SPECULATOR_RAW;
	c.spill_percent = 0;
	c.namespaces_max = OTHERS + 1;
	(void)snprintf(c.nvme_path, sizeof(c.nvme_path), "%s", path);
	c.nvme_segment_bytes = 128u << 10;
	c.nvme_bytes = 8 * c.nvme_segment_bytes;
	lane_rig_start_again(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	(void)unlink(path);
	return 0;
}

static void open_others(void)
{
	memset(others, 0, sizeof(others));
	for (uint32_t i = 0; i < OTHERS; i++) {
		others[i].id = i + 1;
		others[i].tenant = &rig.tenant;
		others[i].geom = rig.ns.geom;
		others[i].digest[0] = (uint8_t)i;
		lane_rig_ask(&rig,
			     &(struct mail){ .type = LANE_NS_ADD,
					     .subject = &rs.s,
					     .object = &others[i],
					     .value = 2 },
			     0);
	}
}

static void store(void)
{
	for (uint32_t i = 0; i < BLOCKS; i++)
		lane_rig_fill(&rs, i, i);
	lane_rig_store(&rs, 0, BLOCKS, 7);
	assert_int_equal(lane_rig_done(&rs).res, 0);
}

/* Until nothing has been written for so long. */
static uint64_t quiet(unsigned ms)
{
	const uint64_t start_ns = clock_now_ns();
	uint64_t written = 0;

	for (unsigned n = 0; n < ms; n++) {
		if (counter(STAT_NVME_WRITTEN_BYTES) != written || !written)
			n = 0;
		written = counter(STAT_NVME_WRITTEN_BYTES);
		if (clock_now_ns() - start_ns > RIG_WAIT_NS / 10)
			fail_msg("there is no end to writing: %llu bytes by now",
				 (unsigned long long)written);
		usleep(1000);
	}
	return written;
}

/* What it has no room for is not written again and again, over what is there. */
static void names_that_do_not_fit_are_left_alone(void **state)
{
	(void)state;
	open_others();
	store();
	assert_in_range(quiet(1200), BLOCKS * rig.ns.geom.raw_bytes, 1u << 20);
	assert_int_equal(counter(STAT_BLOCKS), BLOCKS);
	assert_int_equal(counter(STAT_BLOCKS_NVME), BLOCKS);
	assert_int_equal(counter(STAT_NVME_CHECKPOINTS), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(names_that_do_not_fit_are_left_alone, setup,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
