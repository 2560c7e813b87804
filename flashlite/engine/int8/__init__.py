"""Models whose matrices are int8 with a scale for each row, and whose computing is float32."""
