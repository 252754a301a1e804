#include "check.hpp"

int main() { return fairsteer::testing::run_all(); }
