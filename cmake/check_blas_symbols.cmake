# Fails when MODULE calls a BLAS or LAPACK routine that cpp/bindings/scipy_blas.cpp does not bind.
execute_process(
  COMMAND "${NM}" -D --undefined-only "${MODULE}"
  OUTPUT_VARIABLE symbols
  RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${NM} could not read ${MODULE}")
endif()
string(REGEX MATCHALL "[^\n]* (LAPACKE_[a-z0-9]+|[sdcz][a-z0-9]+_)(\n|$)" unbound "${symbols}")
if(unbound)
  string(REGEX REPLACE "[ \n;U]+" " " unbound "${unbound}")
  message(FATAL_ERROR "Eigen calls routines that cpp/bindings/scipy_blas.cpp does not bind:${unbound}")
endif()
