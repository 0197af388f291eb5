/* An interpreter of a real language: a Lua script of calls, tables, strings and closures, run a few times over. Events
 * are runs. */
#include "bench.h"
#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"

#define RUNS 2
BENCH("lua", RUNS, RUNS * 415642ul);

static const char script[] =
    "local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end\n"
    "local function sieve(n)\n"
    "  local composite, count = {}, 0\n"
    "  for i = 2, n do\n"
    "    if not composite[i] then\n"
    "      count = count + 1\n"
    "      for j = i * i, n, i do composite[j] = true end\n"
    "    end\n"
    "  end\n"
    "  return count\n"
    "end\n"
    "local function words(n)\n"
    "  local seen, distinct, longest = {}, 0, 0\n"
    "  for i = 1, n do\n"
    "    local word = ('%x'):format(i * 2654435761 % 65536)\n"
    "    if not seen[word] then seen[word] = 0; distinct = distinct + 1 end\n"
    "    seen[word] = seen[word] + 1\n"
    "    if seen[word] > longest then longest = seen[word] end\n"
    "  end\n"
    "  return distinct * 16 + longest\n"
    "end\n"
    "local Point = {}\n"
    "Point.__index = Point\n"
    "function Point.new(x, y) return setmetatable({ x = x, y = y }, Point) end\n"
    "function Point:add(other) return Point.new(self.x + other.x, self.y + other.y) end\n"
    "local function points(n)\n"
    "  local sum, one = Point.new(0, 0), Point.new(1, 2)\n"
    "  for _ = 1, n do sum = sum:add(one) end\n"
    "  return sum.x + sum.y\n"
    "end\n"
    "local function sorted(n)\n"
    "  local t, x, check = {}, 12345, 0\n"
    "  for i = 1, n do x = (x * 1103515245 + 12345) & 0x7fffffff; t[i] = x end\n"
    "  table.sort(t, function(a, b) return a < b end)\n"
    "  for i = 1, n, n // 16 do check = check ~ t[i] end\n"
    "  return check & 0xffffff\n"
    "end\n"
    "return fib(22) + sieve(50000) + words(10000) + points(50000) + sorted(10000)\n";

uint64_t kernel(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < RUNS; i++) {
        lua_State *lua = luaL_newstate();
        luaL_requiref(lua, "_G", luaopen_base, 1);
        luaL_requiref(lua, "table", luaopen_table, 1);
        luaL_requiref(lua, "string", luaopen_string, 1);
        if (luaL_loadstring(lua, script) || lua_pcall(lua, 0, 1, 0))
            return luaL_error(lua, "%s", lua_tostring(lua, -1));
        sum += lua_tointeger(lua, -1);
        lua_close(lua);
    }
    return sum;
}
