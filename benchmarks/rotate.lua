-- For wrk: the bodies that the file $BENCH_BODIES lists, one after another; prints one line of JSON at the end.
-- $BENCH_WARM_S seconds at the start count neither for the rate nor for the statuses. The rate is from the last success
-- before that moment to the last of all: answers come in batches, and an edge that cuts one would blur the rate.

local ffi = require("ffi")
ffi.cdef [[
  struct bench_time { long seconds; long nanoseconds; };
  int clock_gettime(int clock, struct bench_time *now);
]]

local MONOTONIC = 1
local moment = ffi.new("struct bench_time")

local function now()
  ffi.C.clock_gettime(MONOTONIC, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) * 1e-9
end

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(_)
  warm_s = tonumber(os.getenv("BENCH_WARM_S"))
  statuses = {}
  succeeded = 0
  counted = 0
  requests = {}
  next_request = 0
  local headers = { ["Content-Type"] = "image/jpeg" }
  for name, value in string.gmatch(os.getenv("BENCH_HEADERS") or "", "([^:\n]+): ([^\n]+)") do
    headers[name] = value
  end
  for path in io.lines(os.getenv("BENCH_BODIES")) do
    local file = assert(io.open(path, "rb"))
    table.insert(requests, wrk.format("POST", nil, headers, file:read("*a")))
    file:close()
  end
end

function request()
  started_at = started_at or now()
  next_request = next_request % #requests + 1
  return requests[next_request]
end

function response(status, _, _)
  local answered_at = now()
  local warm = answered_at - started_at < warm_s
  if status == 200 then
    succeeded = succeeded + 1
    if warm then
      counts_from = answered_at
    else
      counted = counted + 1
      counts_until = answered_at
    end
  end
  if not warm then
    local key = tostring(status)
    statuses[key] = (statuses[key] or 0) + 1
  end
end

function done(summary, latency, _)
  local of_all_threads = {}
  local counts = {}
  local all_succeeded = 0
  local rate = 0
  for _, thread in ipairs(threads) do
    local from = thread:get("counts_from") or thread:get("started_at")
    local elapsed = (thread:get("counts_until") or from or 0) - (from or 0)
    if elapsed > 0 then
      rate = rate + thread:get("counted") / elapsed
    end
    all_succeeded = all_succeeded + thread:get("succeeded")
    for status, count in pairs(thread:get("statuses")) do
      of_all_threads[status] = (of_all_threads[status] or 0) + count
    end
  end
  for status, count in pairs(of_all_threads) do
    table.insert(counts, string.format('"%s": %d', status, count))
  end
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    '{"seconds": %.6f, "steady_per_second": %.6f, "statuses": {%s}, "failed": %d, "succeeded": %d, "p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "mean_ms": %.3f, "max_ms": %.3f}\n',
    summary.duration / 1e6, rate, table.concat(counts, ", "), failed, all_succeeded,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
    latency.mean / 1e3, latency.max / 1e3))
end
