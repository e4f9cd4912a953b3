/* SPDX-License-Identifier: Apache-2.0 */
/*
 * e2e.h - what every end-to-end test program includes: cmocka, the helpers, and checks that print the
 * errno they did not expect.
 */
#ifndef SKVCD_TESTS_LIB_E2E_H
#define SKVCD_TESTS_LIB_E2E_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/daemon_stats.h"
#include "tests/lib/engine.h"
#include "tests/lib/kv_data.h"
#include "tests/lib/private_daemon.h"
#include "tests/lib/rng.h"

/* A sanitizer slows everything down; a bound in time is then only about hanging. */
#ifdef SKVCD_SAN
#define E2E_SLOW 10u
#else
#define E2E_SLOW 1u
#endif

/* r == expected, both 0 or negative errno; says their names when not. */
#define assert_res(call, expected)                                                            \
	do {                                                                                  \
		int res_ = (call), expected_ = (expected);                                    \
		if (res_ != expected_)                                                        \
			print_error("%s:%d: %s = %d (%s), not %d (%s)\n", __FILE__, __LINE__, \
				    #call, res_, strerror(res_ < 0 ? -res_ : 0), expected_,   \
				    strerror(expected_ < 0 ? -expected_ : 0));                \
		assert_int_equal(res_, expected_);                                            \
	} while (0)

#define assert_ok(call) assert_res(call, 0)

#endif
