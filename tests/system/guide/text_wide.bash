curl -X POST "http://localhost:8081/user/ai/tasks/submit" \
-H "Content-Type: application/json" \
-H "Authorization: Bearer YOUR_JWT_TOKEN" \
-d '{
"modelName": "sc_soraimg_text_3x2",
"prompt": "壮丽的山脉日出,金色阳光洒满山谷,风景摄影风格"
}'
